//! After the store failed: what a group leaves behind, and how it is taken up once the store is back.

use mail_core::MessageId;

use super::{Answer, Committer, Failed, Group, Request, Written, read, read_counters};
use crate::index;
use crate::keys;
use crate::message::{Accepted, Settle, Settled};
use crate::names::UnitKey;
use crate::records::{EnvelopeRecord, Event, EventKind};
use crate::store::Family;
use crate::{CommitError, ReadError};

fn failing(error: &ReadError) -> CommitError {
    CommitError::Failing(error.to_string())
}

impl Failed {
    fn new(error: CommitError) -> Self {
        Self {
            error,
            unanswered: Vec::new(),
            kept: Vec::new(),
            unread: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Takes in what nobody was answered: outcomes are kept, all else is refused.
    fn add(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Settled(reply, Ok(_), settle) => self.kept.push(Request::Settle { settle, reply }),
                Answer::Settled(reply, Err(CommitError::Failing(_)), settle) => {
                    self.unread.push(Request::Settle { settle, reply });
                }
                other => {
                    self.unanswered.extend(other.messages());
                    self.refused.push(other);
                }
            }
        }
    }

    /// Tells those whose request is not kept.
    pub(crate) fn tell(&mut self) {
        for answer in self.refused.drain(..) {
            let error = self.error.clone();
            match answer {
                Answer::Accepted(reply, _) => drop(reply.send(Err(error))),
                Answer::Settled(reply, result, _) => drop(reply.send(result.and(Err(error)))),
                Answer::Done(reply, _) => drop(reply.send(Err(error))),
            }
        }
    }

    /// Refuses one more request, or keeps it.
    pub(crate) fn refuse(&mut self, request: Request) {
        let error = self.error.clone();
        match request {
            Request::Settle { .. } => self.kept.push(request),
            Request::Accept { reply, .. } => drop(reply.send(Err(error))),
            Request::Chunk { reply, .. }
            | Request::Adjust {
                reply: Some(reply), ..
            }
            | Request::EndAdjustment {
                reply: Some(reply), ..
            }
            | Request::Suspend { reply, .. }
            | Request::Resume { reply, .. }
            | Request::Count { reply, .. }
            | Request::Retry { reply, .. }
            | Request::SetAside { reply, .. }
            | Request::Import { reply, .. } => drop(reply.send(Err(error))),
            Request::Abandon(_)
            | Request::Nudge
            | Request::Rest { .. }
            | Request::Hold { .. }
            | Request::Forget { .. }
            | Request::Present(_)
            | Request::Lift { .. }
            | Request::Adjust { reply: None, .. }
            | Request::EndAdjustment { reply: None, .. }
            | Request::Damaged(_)
            | Request::Mend { .. } => {}
        }
    }

    /// All that is to be recorded.
    pub(crate) fn take_kept(&mut self) -> Vec<Request> {
        let mut kept = std::mem::take(&mut self.kept);
        kept.append(&mut self.unread);
        kept
    }

    /// What those come by is still not read after the store was opened anew: it is no failure of the store's, and others need not wait.
    pub(crate) fn tell_unread(&mut self) {
        answer(
            self.unread.drain(..),
            &CommitError::Damaged(self.error.to_string()),
        );
    }

    /// The store will not be brought back: whoever waits for it learns so.
    pub(crate) fn give_up(mut self) {
        self.tell();
        answer(self.take_kept().into_iter(), &self.error);
    }
}

fn answer(settles: impl Iterator<Item = Request>, error: &CommitError) {
    for request in settles {
        if let Request::Settle { reply, .. } = request {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

impl Committer {
    /// What is left of a group whose write failed. Nobody is told yet.
    pub(super) fn fail(
        &mut self,
        group: Group,
        rest: impl Iterator<Item = Request>,
        error: ReadError,
    ) -> Box<Failed> {
        self.forget();
        let mut failed = Failed::new(failing(&error));
        failed.add(group.answers);
        rest.for_each(|request| failed.refuse(request));
        Box::new(failed)
    }

    /// What is left of groups that were written and could not be synced, and of one after them that could not be written.
    pub(crate) fn fail_unsynced(
        &mut self,
        error: CommitError,
        groups: Vec<Written>,
        next: Option<Box<Failed>>,
    ) -> Box<Failed> {
        self.forget();
        let mut failed = Failed::new(error);
        for group in groups {
            failed.add(group.answers);
        }
        if let Some(next) = next {
            failed.unanswered.extend(next.unanswered);
            failed.kept.extend(next.kept);
            failed.unread.extend(next.unread);
            failed.refused.extend(next.refused);
        }
        Box::new(failed)
    }

    /// What memory holds may be ahead of the store after a failure.
    fn forget(&mut self) {
        self.numbers.clear();
        self.queues.clear();
        self.totals.clear();
        self.touched.clear();
        self.adjustments = None;
    }

    /// Deletes messages that nobody was told were kept, as far as they are in the store: their clients were told to come
    /// back, and would send them twice. For a store that nobody else reads yet.
    pub(crate) fn take_out(&mut self, unanswered: &[MessageId]) -> Result<usize, ReadError> {
        let mut group = Group::default();
        let mut found = 0;
        for &id in unanswered {
            match self.take_out_one(&mut group, id) {
                Ok(there) => found += usize::from(there),
                // Nothing of it was written to the batch yet; it is set aside when its turn comes.
                Err(damage @ ReadError::Damaged { .. }) => {
                    tracing::error!(%id, error = %damage, "not taken out")
                }
                Err(error) => return Err(error),
            }
        }
        group.synced = true;
        self.write(&mut group, None)?;
        Ok(found)
    }

    fn take_out_one(&mut self, group: &mut Group, id: MessageId) -> Result<bool, ReadError> {
        let Some(envelope) = read::<EnvelopeRecord>(&*self.store, Family::Envelope, id.as_bytes())? else {
            return Ok(false);
        };
        let units = (0..).zip(&envelope.units).map(|(unit, record)| UnitKey {
            queue: record.queue,
            due: record.due,
            id,
            unit,
        });
        let mut found = Vec::with_capacity(envelope.units.len());
        for unit in units {
            // All that can be damaged is read before anything is written.
            self.queue_mut(group, unit.queue)?;
            let standing = self.standing(group, &unit)?;
            found.extend(standing.map(|(due, aside)| (unit, due, aside.is_some())));
        }
        for (unit, due, aside) in &found {
            group.gone.insert(*unit);
            group.batch.delete(Family::Due, &keys::due(unit));
            self.end_unit(group, unit, due, *aside)?;
        }
        let recipients = envelope.units.iter().flat_map(|unit| &unit.recipients);
        let event = Event {
            at: envelope.received_at,
            kind: EventKind::Cancelled,
            id: Some(id),
            queue: None,
            unit: 0,
            recipients: recipients
                .map(|recipient| recipient.mailbox.to_string())
                .collect(),
            attempt: 0,
            hop: None,
            reply: "4.3.0 the store failed before the client was told that it is kept".to_owned(),
            tag: envelope.tag,
            metadata: Vec::new(),
        };
        self.journal(group, &event);
        Ok(true)
    }

    /// The store is back: goes by what it holds. Answers those of the `kept` that the failed group had written after all, and
    /// returns the others.
    pub(crate) fn resume_with(&mut self, kept: Vec<Request>) -> Result<Vec<Request>, Box<Failed>> {
        let failed = |error: ReadError, kept| {
            Box::new(Failed {
                kept,
                ..Failed::new(failing(&error))
            })
        };
        match read_counters(&*self.store) {
            Ok(counters) => self.counters = counters,
            Err(error) => return Err(failed(error, kept)),
        }
        // What the failed group wrote after all was not counted.
        self.usage.load(index::totals(&*self.store));
        let mut unwritten = Vec::with_capacity(kept.len());
        let mut kept = kept.into_iter();
        while let Some(request) = kept.next() {
            let Request::Settle { settle, reply } = request else {
                continue;
            };
            match self.written(&settle) {
                Ok(Some(settled)) => drop(reply.send(Ok(settled))),
                // Damage is met again where it is written, and told to this one alone.
                Ok(None) | Err(ReadError::Damaged { .. }) => {
                    unwritten.push(Request::Settle { settle, reply })
                }
                Err(error) => {
                    unwritten.extend(kept);
                    let mut failed = failed(error, unwritten);
                    failed.unread.push(Request::Settle { settle, reply });
                    return Err(failed);
                }
            }
        }
        Ok(unwritten)
    }

    /// What a settle has made of its unit, where the store shows that it was written: its reports are there, or, where it has none, its due
    /// key is gone, and what it put in its place is there.
    fn written(&self, settle: &Settle) -> Result<Option<Settled>, ReadError> {
        let is_there = |unit: &UnitKey| -> Result<bool, ReadError> {
            Ok(self.store.get(Family::Due, &keys::due(unit))?.is_some())
        };
        let moved = settle.again.as_ref().map(|again| UnitKey {
            due: again.due,
            ..settle.unit
        });
        let mut reports = Vec::with_capacity(settle.reports.len());
        for report in &settle.reports {
            let key = report.id.as_bytes();
            let Some(envelope) = read::<EnvelopeRecord>(&*self.store, Family::Envelope, key)? else {
                return Ok(None);
            };
            let units = (0..).zip(&envelope.units).map(|(unit, record)| UnitKey {
                queue: record.queue,
                due: record.due,
                id: report.id,
                unit,
            });
            reports.push(Accepted {
                id: report.id,
                units: units.collect(),
            });
        }
        // A unit that is due again at the same time can't be told from one that was not written. Without reports, writing it twice does no
        // harm.
        if reports.is_empty() {
            let stands = self.standing(&Group::default(), &settle.unit)?.is_some();
            if stands || moved.map_or(Ok(false), |moved| is_there(&moved).map(|there| !there))? {
                return Ok(None);
            }
        }
        Ok(Some(Settled { unit: moved, reports }))
    }
}
