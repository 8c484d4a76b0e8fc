//! Reading all of a store, and telling what is wrong with it.

use std::collections::HashMap;

use mail_core::MessageId;

use super::{Closed, Stop};
use crate::adjustment::AdjustmentRecord;
use crate::counts::CountsRecord;
use crate::names::{QueueId, UnitKey};
use crate::presence::PresenceRecord;
use crate::records::{
    AsideRecord, Counters, Damaged, DamagedRecord, DueRecord, EnvelopeRecord, Event, GroupRecord, HoldRecord,
    QueueRecord, Record, StateRecord, SuspensionRecord, TotalsRecord, UploadRecord, decode, unseal,
};
use crate::store::{Family, Store};
use crate::{ReadError, keys};

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub family: Family,
    /// Its key.
    pub key: Vec<u8>,
    /// What.
    pub what: String,
}

/// What one family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyCount {
    /// Which.
    pub family: Family,
    /// Its records.
    pub records: u64,
    /// Octets of their values.
    pub bytes: u64,
    /// Those with something wrong, and ranges that do not read.
    pub problems: u64,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// By family.
    pub families: Vec<FamilyCount>,
    /// Messages.
    pub messages: u64,
    /// Units that wait.
    pub units: u64,
    /// Units that are set aside.
    pub aside: u64,
}

impl Verified {
    /// All that is wrong.
    pub fn problems(&self) -> u64 {
        self.families.iter().map(|family| family.problems).sum()
    }
}

/// What is being gone through.
struct Look<'a> {
    closed: &'a Closed,
    tell: &'a mut dyn FnMut(Problem),
    problems: u64,
    found: Verified,
    /// Of the message whose chunks are gone through: its envelope, and how many of them were there.
    body: Option<(MessageId, Option<EnvelopeRecord>, usize)>,
    /// Messages whose chunks were gone through, or that have none.
    bodies: u64,
    /// Of the queue that is gone through.
    waiting: Option<(QueueId, u64)>,
    /// By queue, units that are set aside.
    aside: HashMap<QueueId, u64>,
    /// By tenant and stream, what their queues' records add up to.
    totals: HashMap<(String, String), TotalsRecord>,
}

impl Closed {
    /// Reads everything: each record's and chunk's checksum, and whether they fit one another. `tell` hears of each problem.
    /// The store has to be opened with `salvage`, so that what does not read is gone past.
    pub fn verify(&self, tell: &mut dyn FnMut(Problem)) -> Result<Verified, Stop> {
        let mut look = Look {
            closed: self,
            tell,
            problems: 0,
            found: Verified::default(),
            body: None,
            bodies: 0,
            waiting: None,
            aside: HashMap::new(),
            totals: HashMap::new(),
        };
        // Units that are set aside are to be known before their queues are counted.
        look.family(Family::Aside)?;
        for family in Family::ALL.into_iter().filter(|family| *family != Family::Aside) {
            look.family(family)?;
        }
        Ok(look.found)
    }
}

impl Look<'_> {
    fn wrong(&mut self, family: Family, key: &[u8], what: impl Into<String>) {
        self.problems += 1;
        (self.tell)(Problem {
            family,
            key: key.to_vec(),
            what: what.into(),
        });
    }

    fn family(&mut self, family: Family) -> Result<(), Stop> {
        let (mut records, mut bytes) = (0, 0);
        let (problems, skipped) = (self.problems, self.closed.skipped().len());
        let closed = self.closed;
        closed.each(family, |key, value| {
            records += 1;
            bytes += value.len() as u64;
            self.record(family, key, value)
        })?;
        match family {
            Family::Body => self.body_ends(None)?,
            Family::Due => self.queue_ends(None)?,
            _ => {}
        }
        for range in closed.skipped().into_iter().skip(skipped) {
            let what = format!("does not read, up to key {}: {}", hex(&range.to), range.error);
            self.wrong(range.family, &range.from, what);
        }
        if family == Family::Envelope && self.bodies < self.found.messages {
            self.wrong(
                family,
                &[],
                format!("{} messages have no body", self.found.messages - self.bodies),
            );
        }
        self.found.families.push(FamilyCount {
            family,
            records,
            bytes,
            problems: self.problems - problems,
        });
        Ok(())
    }

    fn record(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let wrong = match family {
            Family::Body => return self.chunk(key, value),
            Family::Envelope => return self.envelope(key, value),
            Family::Due => return self.due(key, value),
            Family::Aside => return self.set_aside(key, value),
            Family::State if key.ends_with(&[u8::MAX; 2]) => unseal::<2>(value).err(),
            Family::State => check::<StateRecord>(value),
            Family::Deadline | Family::Notice => unseal::<2>(value).err(),
            Family::Upload => check::<UploadRecord>(value),
            Family::Queues => match key.first() {
                Some(b'd') => unseal::<8>(value).err(),
                Some(b'r') => return self.queue(key, value),
                Some(b'g') => check::<GroupRecord>(value),
                Some(b'c') => keys::parse_catalogue(key).is_none().then_some(Damaged("key")),
                Some(b'n' | b's' | b'm') => keys::parse_index(key).is_none().then_some(Damaged("key")),
                Some(&keys::TOTALS) => return self.total(key, value),
                _ => Some(Damaged("key")),
            },
            Family::Event => check::<Event>(value),
            Family::Hold => match key.first() {
                Some(&keys::ADJUSTMENT) => {
                    let named = keys::parse_adjustment(key);
                    check::<AdjustmentRecord>(value).or(named.is_none().then_some(Damaged("key")))
                }
                _ => check::<HoldRecord>(value),
            },
            Family::Suspension => check::<SuspensionRecord>(value),
            Family::Count => check::<CountsRecord>(value),
            Family::Meta if key == keys::COUNTERS => check::<Counters>(value),
            Family::Meta if key == keys::PRESENCE => check::<PresenceRecord>(value),
            Family::Meta | Family::Idempotency | Family::Suppression => None,
        };
        if let Some(error) = wrong {
            self.wrong(family, key, error.to_string());
        }
        Ok(())
    }

    fn chunk(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let Some((id, number)) = keys::parse_body(key) else {
            self.wrong(Family::Body, key, Damaged("key").to_string());
            return Ok(());
        };
        if self.body.as_ref().is_none_or(|(of, ..)| *of != id) {
            self.body_ends(Some(id))?;
        }
        let Some((_, envelope, there)) = &mut self.body else {
            return Ok(());
        };
        *there += 1;
        // Of one whose envelope is damaged, nobody can tell.
        if let Some(envelope) = envelope {
            let sum = usize::try_from(number)
                .ok()
                .and_then(|number| envelope.chunks.get(number));
            if sum != Some(&crc32c::crc32c(value)) {
                self.wrong(
                    Family::Body,
                    key,
                    format!("message {id}: chunk {number}: checksum"),
                );
            }
        }
        Ok(())
    }

    /// The chunks of a message have been gone through; those of another follow.
    fn body_ends(&mut self, next: Option<MessageId>) -> Result<(), Stop> {
        if let Some((id, Some(envelope), there)) = self.body.take() {
            self.bodies += 1;
            if there != envelope.chunks.len() {
                let what = format!("message {id}: {there} of {} chunks", envelope.chunks.len());
                self.wrong(Family::Body, id.as_bytes(), what);
            }
        }
        let Some(id) = next else { return Ok(()) };
        let envelope = match self
            .closed
            .read::<EnvelopeRecord>(Family::Envelope, id.as_bytes())
        {
            Ok(Some(envelope)) => Some(envelope),
            Ok(None) => {
                let upload = self.closed.store.get(Family::Upload, id.as_bytes());
                if upload.is_ok_and(|upload| upload.is_none()) {
                    self.wrong(
                        Family::Body,
                        id.as_bytes(),
                        format!("message {id}: a body without its envelope"),
                    );
                }
                None
            }
            Err(ReadError::Damaged { .. }) => {
                self.bodies += 1;
                None
            }
            Err(error) => return Err(error.into()),
        };
        self.body = Some((id, envelope, 0));
        Ok(())
    }

    fn envelope(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        self.found.messages += 1;
        let id = key.try_into().map(MessageId::from_bytes);
        let (Ok(id), Ok(envelope)) = (id, decode::<EnvelopeRecord>(value)) else {
            self.wrong(Family::Envelope, key, "its envelope is damaged");
            return Ok(());
        };
        self.bodies += u64::from(envelope.chunks.is_empty());
        let mut open = 0;
        for (number, unit) in (0..u16::MAX).zip(&envelope.units) {
            let state = match self
                .closed
                .read::<StateRecord>(Family::State, &keys::state(id, number))
            {
                Ok(state) => state,
                // Told of in its own family.
                Err(ReadError::Damaged { .. }) => {
                    open += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let key = UnitKey {
                queue: unit.queue,
                due: state.as_ref().map_or(unit.due, |state| state.due),
                id,
                unit: number,
            };
            let Some((standing, _)) = self.closed.standing(&key)? else {
                if state.is_some() {
                    let what = format!("message {id}: unit {number} has a state and does not wait");
                    self.wrong(Family::State, &keys::state(id, number), what);
                }
                continue;
            };
            open += 1;
            let deadline = keys::deadline(envelope.expires_at, standing.queue, id);
            if self
                .closed
                .store
                .get(Family::Deadline, &deadline)
                .is_ok_and(|found| found.is_none())
            {
                let what = format!("message {id}: unit {number} has no deadline");
                self.wrong(Family::Deadline, &deadline, what);
            }
        }
        if open == 0 {
            self.wrong(
                Family::Envelope,
                key,
                format!("message {id}: nothing of it waits"),
            );
        }
        Ok(())
    }

    fn due(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let Some(unit) = keys::parse_due(key) else {
            self.wrong(Family::Due, key, Damaged("key").to_string());
            return Ok(());
        };
        self.found.units += 1;
        if let Some(error) = check::<DueRecord>(value) {
            self.wrong(Family::Due, key, error.to_string());
        }
        self.has_envelope(Family::Due, key, unit.id)?;
        if self.waiting.is_none_or(|(queue, _)| queue != unit.queue) {
            self.queue_ends(Some(unit.queue))?;
        }
        if let Some((_, count)) = &mut self.waiting {
            *count += 1;
        }
        Ok(())
    }

    /// The units of a queue have been counted; those of another follow.
    fn queue_ends(&mut self, next: Option<QueueId>) -> Result<(), Stop> {
        if let Some((id, waiting)) = self.waiting.take() {
            let aside = self.aside.get(&id).copied().unwrap_or(0);
            let key = keys::record(id);
            match self.closed.read::<QueueRecord>(Family::Queues, &key) {
                Ok(Some(record)) if (record.count, record.aside) == (waiting + aside, aside) => {}
                Ok(Some(record)) => {
                    let what = format!(
                        "queue {id}: its record counts {} units, {} of them set aside; there are {} and {aside}",
                        record.count,
                        record.aside,
                        waiting + aside,
                    );
                    self.wrong(Family::Queues, &key, what);
                }
                Ok(None) => self.wrong(
                    Family::Queues,
                    &key,
                    format!("queue {id} has units and no record"),
                ),
                // Told of in its own family.
                Err(ReadError::Damaged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.waiting = next.map(|queue| (queue, 0));
        Ok(())
    }

    fn set_aside(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        if keys::parse_aside_record(key).is_some() {
            // It is known to be damaged.
            if let Some(error) = check::<DamagedRecord>(value) {
                self.wrong(Family::Aside, key, error.to_string());
            }
            return Ok(());
        }
        let (Some((id, unit)), Ok(record)) = (keys::parse_aside(key), decode::<AsideRecord>(value)) else {
            self.wrong(Family::Aside, key, Damaged("checksum").to_string());
            return Ok(());
        };
        self.found.aside += 1;
        *self.aside.entry(record.queue).or_default() += 1;
        if record.cause == crate::AsideCause::Damaged {
            self.wrong(
                Family::Aside,
                key,
                format!("message {id}: unit {unit} is set aside: {}", record.why),
            );
        }
        self.has_envelope(Family::Aside, key, id)
    }

    fn queue(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        match decode::<QueueRecord>(value) {
            Ok(record) => {
                let stream = (record.name.tenant.to_string(), record.name.stream.to_string());
                let total = self.totals.entry(stream).or_default();
                total.change((0, 0), (record.count, record.bytes));
            }
            Err(error) => self.wrong(Family::Queues, key, error.to_string()),
        }
        Ok(())
    }

    /// Behind all queues, by its key. What it counts is made anew when a relay starts and finds it damaged: not if it is wrong.
    fn total(&mut self, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let named = keys::parse_totals(key).map(|(tenant, stream)| (tenant.to_owned(), stream.to_owned()));
        let (Some(stream), Ok(total)) = (named, decode::<TotalsRecord>(value)) else {
            self.wrong(Family::Queues, key, Damaged("checksum").to_string());
            return Ok(());
        };
        let found = self.totals.get(&stream).copied().unwrap_or_default();
        if total != found {
            let what = format!(
                "tenant {}, stream {}: counted as {} units of {} octets; its queues have {} of {}",
                stream.0, stream.1, total.count, total.bytes, found.count, found.bytes,
            );
            self.wrong(Family::Queues, key, what);
        }
        Ok(())
    }

    fn has_envelope(&mut self, family: Family, key: &[u8], id: MessageId) -> Result<(), Stop> {
        if self
            .closed
            .store
            .get(Family::Envelope, id.as_bytes())
            .is_ok_and(|found| found.is_none())
        {
            self.wrong(
                family,
                key,
                format!("message {id}: it waits, but its envelope is lost"),
            );
        }
        Ok(())
    }
}

fn check<T: Record>(value: &[u8]) -> Option<Damaged> {
    decode::<T>(value).err()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
