//! Writing a store's messages as a stream.

use std::io::Write;

use bytes::Bytes;
use mail_core::{MessageId, Timestamp};

use super::{Closed, Stop};
use crate::ReadError;
use crate::keys;
use crate::names::{QueueName, RouteGroup, UnitKey};
use crate::records::{EnvelopeRecord, StateRecord, SuspensionRecord, decode, encode};
use crate::store::{Family, Store};
use crate::stream::{
    Counts, ExportedMessage, ExportedQueue, ExportedUnit, Header, Kind, LOST_WAY, LeftOut, Writer, suspension,
};
use crate::suspension::Selector;

/// What became of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// What the stream holds.
    pub counts: Counts,
    /// The store ends before what it had acknowledged.
    pub behind: bool,
}

impl Exported {
    /// Whether all of the store is in the stream.
    pub fn is_whole(&self) -> bool {
        self.counts.left_out == 0 && !self.behind
    }
}

/// A stream that is being written.
struct Export<'a, W> {
    closed: &'a Closed,
    out: Writer<W>,
    counts: Counts,
    tell: &'a mut dyn FnMut(&LeftOut),
}

impl Closed {
    /// Writes all messages with their state, and the suspensions, to `out`, a chunk of a body at a time. What does not verify
    /// is left out; `tell` hears of each. `stream` names the stream; `program` is the version that writes it.
    pub fn export<W: Write>(
        &self,
        out: W,
        (stream, program, made_at): ([u8; 16], &str, Timestamp),
        tell: &mut dyn FnMut(&LeftOut),
    ) -> Result<Exported, Stop> {
        let mut export = Export {
            closed: self,
            out: Writer::begin(out)?,
            counts: Counts::default(),
            tell,
        };
        let header = Header {
            stream,
            store: self.name,
            program: program.to_owned(),
            made_at,
        };
        export.out.record(Kind::Header, &header)?;
        if self.lenient {
            // What they have lost is to be known before it is asked for.
            for family in [Family::Aside, Family::Due, Family::State] {
                self.each(family, |_, _| Ok(()))?;
            }
        }
        self.each(Family::Suspension, |key, value| export.suspension(key, value))?;
        self.each(Family::Envelope, |key, value| export.message(key, value))?;
        export.orphans()?;
        for range in self.skipped() {
            // Nobody can tell what was in it, but for what its neighbours say.
            let family = range.family.name();
            export.left_out(
                None,
                None,
                format!("a part of {family} does not read: {}", range.error),
            )?;
        }
        let counts = export.counts;
        export.out.record(Kind::End, &counts)?;
        export.out.finish()?;
        let behind = self.behind().is_some();
        Ok(Exported { counts, behind })
    }
}

impl<W: Write> Export<'_, W> {
    fn left_out(&mut self, id: Option<MessageId>, unit: Option<u16>, what: String) -> Result<(), Stop> {
        let left_out = LeftOut { id, unit, what };
        (self.tell)(&left_out);
        self.counts.left_out += 1;
        Ok(self.out.record(Kind::LeftOut, &left_out)?)
    }

    fn suspension(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let record = match (decode::<SuspensionRecord>(value), Selector::from_key(key)) {
            (Ok(record), _) => record,
            (Err(_), Some(selector)) => SuspensionRecord::damaged(selector),
            (Err(error), None) => return self.left_out(None, None, format!("a suspension: {error}")),
        };
        let queue = match record.selector.queue.map(|queue| self.closed.queue(queue)) {
            None => None,
            Some(Ok(Some(queue))) => Some(queue),
            Some(Ok(None) | Err(ReadError::Damaged { .. })) => {
                let what = format!("a suspension of {}, which is not known", record.selector);
                return self.left_out(None, None, what);
            }
            Some(Err(error)) => return Err(error.into()),
        };
        self.counts.suspensions += 1;
        Ok(self.out.record(Kind::Suspension, &suspension(&record, queue))?)
    }

    fn message(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let Ok(id) = key.try_into().map(MessageId::from_bytes) else {
            return self.left_out(None, None, "an envelope under no message's key".into());
        };
        let envelope = match decode::<EnvelopeRecord>(value) {
            Ok(envelope) => envelope,
            // Told of where its units are found.
            Err(error) => return self.left_out(Some(id), None, format!("its envelope: {error}")),
        };
        if let Err(error) = self.verify_body(id, &envelope) {
            return match error {
                error @ ReadError::Damaged { .. } => self.left_out(Some(id), None, error.to_string()),
                error @ ReadError::Store(_) => Err(error.into()),
            };
        }
        let mut units = Vec::new();
        for (number, unit) in (0..u16::MAX).zip(&envelope.units) {
            let key = UnitKey {
                queue: unit.queue,
                due: unit.due,
                id,
                unit: number,
            };
            match self.unit(key, &envelope) {
                Ok(unit) => units.extend(unit),
                Err(error @ ReadError::Damaged { .. }) => {
                    self.left_out(Some(id), Some(number), error.to_string())?;
                }
                Err(error @ ReadError::Store(_)) => return Err(error.into()),
            }
        }
        if units.is_empty() {
            return Ok(());
        }
        self.counts.messages += 1;
        self.counts.units += units.len() as u64;
        self.counts.bytes += envelope.body_bytes;
        let mut buffer = Vec::new();
        let message = ExportedMessage {
            id,
            envelope: Bytes::copy_from_slice(encode(&envelope, &mut buffer)),
            units,
        };
        self.out.record(Kind::Message, &message)?;
        for (number, &sum) in (0..).zip(&envelope.chunks) {
            let chunk = self.chunk(id, number, sum)?;
            self.out.frame(Kind::Body, &chunk)?;
        }
        Ok(())
    }

    /// A large body is read twice: nothing of a message is written before all of it is known to be there.
    fn verify_body(&self, id: MessageId, envelope: &EnvelopeRecord) -> Result<(), ReadError> {
        for (number, &sum) in (0..).zip(&envelope.chunks) {
            self.chunk(id, number, sum)?;
        }
        Ok(())
    }

    fn chunk(&self, id: MessageId, number: u32, sum: u32) -> Result<Vec<u8>, ReadError> {
        let key = keys::body(id, number);
        let damaged = |what| ReadError::damaged("body", &key, what);
        let chunk = match self.closed.store.get(Family::Body, &key) {
            Ok(chunk) => chunk.ok_or_else(|| damaged("absent"))?,
            Err(error) if self.closed.lenient || error.is_corruption() => return Err(damaged("unreadable")),
            Err(error) => return Err(error.into()),
        };
        if crc32c::crc32c(&chunk) != sum {
            return Err(damaged("checksum"));
        }
        Ok(chunk)
    }

    /// A unit that has not ended.
    fn unit(&self, key: UnitKey, envelope: &EnvelopeRecord) -> Result<Option<ExportedUnit>, ReadError> {
        let closed = self.closed;
        let state_key = keys::state(key.id, key.unit);
        let state = closed.read::<StateRecord>(Family::State, &state_key)?;
        let due = state.as_ref().map_or(key.due, |state| state.due);
        let Some((unit, aside)) = closed.standing(&UnitKey { due, ..key })? else {
            return Ok(None);
        };
        if state.is_none() && closed.store.has_skipped(Family::State, &state_key) {
            return Err(ReadError::damaged("state", &state_key, "unreadable"));
        }
        let queue = match closed.queue(key.queue) {
            Err(ReadError::Damaged { .. }) => None,
            queue => queue?,
        };
        let queue = queue.or_else(|| made_up(envelope, key.unit)).ok_or_else(|| {
            let key = keys::record(key.queue);
            ReadError::damaged("queues", &key, "absent")
        })?;
        let notice = keys::notice(envelope.released_at(), &envelope.transfer, key.queue, key.id);
        let mut buffer = Vec::new();
        Ok(Some(ExportedUnit {
            number: key.unit,
            queue,
            due: unit.due,
            state: state.map(|state| Bytes::copy_from_slice(encode(&state, &mut buffer))),
            aside: aside.map(|record| (record.since, record.cause, record.why)),
            notice: closed
                .store
                .get(Family::Notice, &notice)
                .is_ok_and(|found| found.is_some()),
        }))
    }

    /// Units that wait, or are set aside, and whose message is not there.
    fn orphans(&mut self) -> Result<(), Stop> {
        let closed = self.closed;
        closed.each(Family::Due, |key, _| match keys::parse_due(key) {
            Some(unit) => self.orphan(&unit),
            None => self.left_out(None, None, "a unit under no unit's key".into()),
        })?;
        closed.each(Family::Aside, |key, value| {
            let Some((id, unit)) = keys::parse_aside(key) else {
                // A record, not a unit.
                return Ok(());
            };
            let due = decode(value).map_or(Timestamp(0), |record: crate::AsideRecord| record.due);
            let queue = crate::QueueId(0);
            self.orphan(&UnitKey { queue, due, id, unit })
        })
    }

    fn orphan(&mut self, unit: &UnitKey) -> Result<(), Stop> {
        let there = self
            .closed
            .read::<EnvelopeRecord>(Family::Envelope, unit.id.as_bytes());
        let there = match there {
            Ok(envelope) => envelope.is_some(),
            // Told of already, if it was gone past.
            Err(ReadError::Damaged { what, .. }) if what == "unreadable" => false,
            Err(ReadError::Damaged { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        if there {
            return Ok(());
        }
        self.left_out(
            Some(unit.id),
            Some(unit.unit),
            "it waits, but its envelope is lost".into(),
        )
    }
}

/// The queue of a unit, where nothing but its envelope tells: by which way it was to go is lost.
fn made_up(envelope: &EnvelopeRecord, unit: u16) -> Option<ExportedQueue> {
    let recipient = envelope.units.get(usize::from(unit))?.recipients.first()?;
    let name = QueueName {
        tenant: envelope.tenant.clone(),
        stream: envelope.stream.clone(),
        route_group: RouteGroup(0),
        domain: recipient.mailbox.domain().clone(),
    };
    let group = Some(LOST_WAY.to_owned());
    Some(ExportedQueue { name, group })
}
