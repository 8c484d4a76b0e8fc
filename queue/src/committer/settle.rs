//! What becomes of a unit.

use crate::ReadError;
use crate::keys;
use crate::message::{Settle, Settled};
use crate::names::UnitKey;
use crate::records::{DueRecord, Event, EventKind, StateRecord, Waiting};
use crate::store::Family;

use super::queues::{lower_wake, sleep_if_nothing_waits};
use super::{Committer, Group, chunk_sums};

impl Committer {
    /// `None` where the claim is void: the unit's due key is gone.
    pub(super) fn settle(
        &mut self,
        group: &mut Group,
        settle: &Settle,
    ) -> Result<Option<Settled>, ReadError> {
        let unit = settle.unit;
        let Some((due, aside)) = self.standing(group, &unit)? else {
            return Ok(None);
        };
        // All that can be damaged is read before anything is written.
        self.queue_mut(group, unit.queue)?;
        if settle.again.is_none() && !due.alone {
            self.open_units(group, unit.id)?;
        }
        let mut placed = Vec::with_capacity(settle.reports.len());
        for report in &settle.reports {
            placed.push(self.place(group, report)?);
        }
        group.gone.insert(unit);
        group.batch.delete(Family::Due, &keys::due(&unit));
        self.journal_settle(group, settle)?;
        let moved = match &settle.again {
            Some(again) => {
                let moved = UnitKey {
                    due: again.due,
                    ..unit
                };
                let state = StateRecord {
                    due: again.due,
                    attempts: again.attempts,
                    in_doubt: again.in_doubt,
                    last_attempt: settle.at,
                    open: again
                        .open
                        .iter()
                        .map(|open| Waiting {
                            recipient: open.recipient,
                            reply: open.reply.clone(),
                        })
                        .chain(again.others.iter().cloned())
                        .collect(),
                    signature: again.signature.clone(),
                    delay_told: again.delay_told,
                };
                group
                    .batch
                    .put_record(Family::State, &keys::state(unit.id, unit.unit), &state);
                let due = DueRecord { tried: true, ..due };
                if let Some(aside) = aside {
                    // It was told of, or tried by hand; that doesn't bring it back.
                    self.keep_aside(group, &moved, due, aside);
                } else {
                    group.batch.put_record(Family::Due, &keys::due(&moved), &due);
                    // The same time again would be deleted by the claim's own key, were it not put after it.
                    group.gone.remove(&moved);
                    let queue = self.queue_mut(group, unit.queue)?;
                    queue.deletions += 1;
                    queue.waits(&moved);
                    lower_wake(group, queue, unit.queue, again.due);
                }
                Some(moved)
            }
            None => {
                self.end_unit(group, &unit, &due, aside.is_some())?;
                None
            }
        };
        let mut reports = Vec::with_capacity(settle.reports.len());
        for (report, units) in settle.reports.iter().zip(placed) {
            let chunks = chunk_sums(report);
            reports.push(self.accept(group, report, units, chunks)?);
        }
        Ok(Some(Settled { unit: moved, reports }))
    }

    pub(super) fn end_unit(
        &mut self,
        group: &mut Group,
        unit: &UnitKey,
        due: &DueRecord,
        aside: bool,
    ) -> Result<(), ReadError> {
        if aside {
            let key = keys::aside(unit.id, unit.unit);
            group.batch.delete(Family::Aside, &key);
        }
        group.batch.delete(
            Family::Deadline,
            &keys::deadline(due.expires_at, unit.queue, unit.id),
        );
        if due.tried {
            group
                .batch
                .delete(Family::State, &keys::state(unit.id, unit.unit));
        }
        let queue = self.queue_mut(group, unit.queue)?;
        queue.deletions += 1;
        queue.record.count = queue.record.count.saturating_sub(1);
        queue.record.bytes = queue.record.bytes.saturating_sub(due.bytes);
        queue.record.aside = queue.record.aside.saturating_sub(u64::from(aside));
        sleep_if_nothing_waits(group, queue, unit.queue);
        if !due.alone {
            let open = self.open_units(group, unit.id)?.saturating_sub(1);
            group.open_units.insert(unit.id, open);
            if open > 0 {
                let key = keys::open_units(unit.id);
                group.batch.put_sealed(Family::State, &key, &open.to_be_bytes());
                return Ok(());
            }
            group.batch.delete(Family::State, &keys::open_units(unit.id));
        }
        group.batch.delete(Family::Envelope, unit.id.as_bytes());
        for chunk in 0..due.chunks {
            group.batch.delete(Family::Body, &keys::body(unit.id, chunk));
        }
        Ok(())
    }

    fn journal_settle(&mut self, group: &mut Group, settle: &Settle) -> Result<(), ReadError> {
        let queue = self.queue_mut(group, settle.unit.queue)?.record.name.clone();
        let entry = |kind, recipients, reply: &str| Event {
            at: settle.at,
            kind,
            id: Some(settle.unit.id),
            queue: Some(queue.clone()),
            unit: settle.unit.unit,
            recipients,
            attempt: settle.attempt,
            hop: settle.hop.clone(),
            reply: reply.to_owned(),
            tag: None,
            metadata: Vec::new(),
        };
        for end in &settle.ends {
            self.journal(
                group,
                &entry(end.fate.event(), vec![end.mailbox.to_string()], &end.reply),
            );
        }
        if settle.ends.is_empty() && settle.again.is_none() {
            // Of damage, nobody knows whom it was for.
            let reply = "ended, though its recipients could not be read";
            self.journal(group, &entry(EventKind::Damaged, Vec::new(), reply));
        }
        if let Some(again) = &settle.again {
            let kind = if again.doubtful {
                EventKind::InDoubt
            } else {
                EventKind::Deferred
            };
            for open in &again.open {
                self.journal(group, &entry(kind, vec![open.mailbox.to_string()], &open.reply));
            }
        }
        Ok(())
    }
}
