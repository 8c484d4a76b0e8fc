//! Reading the queue. Each call is short and blocks: pages are small, and no view of the store outlives its call.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use mail_core::{MessageId, Timestamp};

use crate::committer::{read, read_counters};
use crate::keys;
use crate::names::{HoldScope, QueueId, UnitKey};
use crate::records::{
    AsideRecord, DueRecord, EnvelopeRecord, Event, HoldRecord, QueueRecord, Record, StateRecord, decode,
    unseal, verifies,
};
use crate::store::Family;
use crate::{Queue, ReadError};

/// Events looked through for one message's history.
const HISTORY_SCAN: usize = 200_000;

/// A message in the queue.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its name.
    pub id: MessageId,
    /// What never changes.
    pub envelope: EnvelopeRecord,
    /// Units that have not ended.
    pub units: Vec<Unit>,
}

/// A unit that has not ended.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Where it waits.
    pub key: UnitKey,
    /// What of it changes; before the first deferral, nothing but the due time.
    pub state: Option<StateRecord>,
    /// Why it is set aside, if it is; its `state` may be unknown then.
    pub aside: Option<AsideRecord>,
}

/// A place in the deadline index, to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadlineKey([u8; 32]);

impl DeadlineKey {
    /// Behind all units whose time was up before `at`, less a second, and before those of later.
    pub fn before(at: Timestamp) -> Self {
        Self(keys::deadline(at, QueueId(0), MessageId::LEAST))
    }

    /// The same among those whose time the client named.
    pub fn named_before(at: Timestamp) -> Self {
        Self(keys::named(Self::before(at).0))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What [`Queue::delayed`] found, and where to go on where there may be more.
pub type Overdue = (Vec<(DeadlineKey, Option<UnitKey>)>, Option<DeadlineKey>);

impl Queue {
    /// Queues that wake no later than `until`, in that order, after `after`.
    pub fn waking(
        &self,
        after: Option<(Timestamp, QueueId)>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, QueueId)>, ReadError> {
        let from = match after {
            Some((wake, queue)) => keys::catalogue(wake, QueueId(queue.0.saturating_add(1))),
            None => keys::catalogue(Timestamp(0), QueueId(0)),
        };
        let mut page = Vec::new();
        self.store.scan_past(
            Family::Queues,
            &from,
            &keys::catalogue(until, QueueId(u64::MAX)),
            &mut |key, _| {
                page.extend(keys::parse_catalogue(key));
                page.len() < limit
            },
        )?;
        Ok(page)
    }

    /// A queue's record.
    pub fn info(&self, queue: QueueId) -> Result<Option<QueueRecord>, ReadError> {
        let info = read(&*self.store, Family::Queues, &keys::record(queue));
        if let Err(ReadError::Damaged { .. }) = info {
            self.mend(queue);
        }
        info
    }

    /// Queues by number, after `after`, empty ones too.
    pub fn queues(
        &self,
        after: Option<QueueId>,
        limit: usize,
    ) -> Result<Vec<(QueueId, QueueRecord)>, ReadError> {
        let from = keys::record(QueueId(after.map_or(0, |queue| queue.0.saturating_add(1))));
        let to = keys::record(QueueId(u64::MAX));
        self.page(Family::Queues, &from, &to, limit, |key| {
            keys::number(&key[1..]).map(QueueId)
        })
    }

    /// Up to `limit` records in key order. One that does not read is told of and left out: what a page is for, an operator's
    /// view or a walk through the journal, must not end at it.
    pub(crate) fn page<K, R: Record>(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        limit: usize,
        parse: impl Fn(&[u8]) -> Option<K>,
    ) -> Result<Vec<(K, R)>, ReadError> {
        let (mut page, mut damaged) = (Vec::new(), Vec::new());
        self.store.scan_past(family, from, to, &mut |key, value| {
            let damage = match (parse(key), decode(value)) {
                (Some(name), Ok(record)) => {
                    page.push((name, record));
                    None
                }
                (_, Err(error)) => Some(error.0),
                (None, Ok(_)) => Some("key"),
            };
            if let Some(what) = damage {
                tracing::error!(error = %ReadError::damaged(family.name(), key, what), "left out");
                damaged.push((key.to_vec(), what));
            }
            page.len() < limit
        })?;
        for (key, what) in damaged {
            match (family, &key[..]) {
                (Family::Queues, [b'r', number @ ..]) => {
                    if let Some(number) = keys::number(number) {
                        self.mend(QueueId(number));
                    }
                }
                _ => self.met(family, &key, what),
            }
        }
        Ok(page)
    }

    /// Units of a queue in due order, from the place (due, id, unit) on, and whether there are more. A message that is not on disk
    /// yet is not among them.
    pub fn due(
        &self,
        queue: QueueId,
        place: (Timestamp, MessageId, u16),
        limit: usize,
    ) -> Result<(Vec<UnitKey>, bool), ReadError> {
        let (due, id, unit) = match self.info(queue) {
            Ok(Some(QueueRecord {
                low_water: (due, id), ..
            })) => place.max((due, id, 0)),
            // Its record is made anew; meanwhile all that was deleted is passed.
            Ok(None) | Err(ReadError::Damaged { .. }) => place,
            Err(error) => return Err(error),
        };
        let from = keys::due(&UnitKey { queue, due, id, unit });
        let unsynced = self.intake.unsynced();
        let mut page = Vec::new();
        let mut more = false;
        self.store
            .scan_past(Family::Due, &from, &keys::due_end(queue), &mut |key, _| {
                if page.len() == limit {
                    more = true;
                    return false;
                }
                page.extend(keys::parse_due(key).filter(|unit| !unsynced.hides(unit.id)));
                true
            })?;
        Ok((page, more))
    }

    /// Whether the unit waits at just this place.
    pub fn is_due(&self, unit: &UnitKey) -> Result<bool, ReadError> {
        Ok(self.store.get(Family::Due, &keys::due(unit))?.is_some())
    }

    /// Until when the unit is held as its client asked (RFC 4865); none where it has been tried or moved.
    pub fn held_until(&self, unit: &UnitKey) -> Result<Option<Timestamp>, ReadError> {
        if self.state(unit.id, unit.unit)?.is_some() {
            return Ok(None);
        }
        let envelope = self.envelope(unit.id)?;
        let of_unit = |envelope: EnvelopeRecord| {
            let due = envelope.units.get(usize::from(unit.unit))?.due;
            (due == unit.due && due > envelope.received_at).then_some(due)
        };
        Ok(envelope.and_then(of_unit))
    }

    /// Units whose time is up, the longest overdue first, of queues that are `wanted`; after the deadline key `after`. Beside
    /// them the key to go on after, where there may be more.
    pub fn expired(
        &self,
        now: Timestamp,
        after: Option<DeadlineKey>,
        limit: usize,
        wanted: impl Fn(QueueId) -> bool,
    ) -> Result<(Vec<UnitKey>, Option<DeadlineKey>), ReadError> {
        let (found, more) = self.overdue(Family::Deadline, now, after, limit, wanted)?;
        Ok((found.into_iter().filter_map(|(_, unit)| unit).collect(), more))
    }

    /// Units that came in, or were released, before `before` and whose senders want to hear of a delay, as [`Queue::expired`] gives them; none
    /// where the unit has ended. Each with the key for [`Queue::forget_notices`].
    pub fn delayed(
        &self,
        before: Timestamp,
        after: Option<DeadlineKey>,
        limit: usize,
        wanted: impl Fn(QueueId) -> bool,
    ) -> Result<Overdue, ReadError> {
        self.overdue(Family::Notice, before, after, limit, wanted)
    }

    /// The same of units whose client named the time at which its sender is to hear of a delay (RFC 2852): it is over by `now`.
    pub fn late(
        &self,
        now: Timestamp,
        after: Option<DeadlineKey>,
        limit: usize,
        wanted: impl Fn(QueueId) -> bool,
    ) -> Result<Overdue, ReadError> {
        let after = after.or(Some(DeadlineKey::named_before(Timestamp(0))));
        self.overdue(Family::Notice, now, after, limit, wanted)
    }

    /// Queues with mail whose time is up, or was named by its client, from `from` until `to`, each with the first such moment: what the
    /// nearest `limit` keys of either kind say. Nothing is read of the mail itself.
    pub fn ending(
        &self,
        from: Timestamp,
        to: Timestamp,
        limit: usize,
    ) -> Result<BTreeMap<QueueId, Timestamp>, ReadError> {
        let mut found = BTreeMap::new();
        let all = [
            (
                Family::Deadline,
                DeadlineKey::before(from),
                DeadlineKey::before(to),
            ),
            (
                Family::Notice,
                DeadlineKey::named_before(from),
                DeadlineKey::named_before(to),
            ),
        ];
        for (family, from, to) in all {
            let mut count = 0;
            self.store.scan_past(family, &from.0, &to.0, &mut |key, _| {
                if let Some((at, queue)) = keys::parse_end(key) {
                    let first = found.entry(queue).or_insert(at);
                    *first = at.min(*first);
                }
                count += 1;
                count < limit
            })?;
        }
        Ok(found)
    }

    fn overdue(
        &self,
        family: Family,
        now: Timestamp,
        after: Option<DeadlineKey>,
        limit: usize,
        wanted: impl Fn(QueueId) -> bool,
    ) -> Result<Overdue, ReadError> {
        let unsynced = self.intake.unsynced();
        let mut found = Vec::new();
        let mut last = None;
        // The least key greater than `after`.
        let from = after.map_or(Vec::new(), |key| [&key.0[..], &[0]].concat());
        // Seconds are rounded up in the key: a bucket is over when its second has begun.
        let mut to = (now.seconds() + 1).to_be_bytes();
        to[0] |= from.first().copied().unwrap_or_default() & keys::NAMED;
        self.store.scan_past(family, &from, &to, &mut |key, value| {
            let unit = unseal(value).ok().map(u16::from_be_bytes);
            if let (Some((queue, id)), Ok(key)) = (keys::parse_deadline(key), key.try_into())
                && wanted(queue)
                && !unsynced.hides(id)
            {
                found.push((DeadlineKey(key), queue, id, unit));
                last = Some(DeadlineKey(key));
            }
            found.len() < limit
        })?;
        let more = last.filter(|_| found.len() == limit);
        let mut units = Vec::with_capacity(found.len());
        for (key, queue, id, unit) in found {
            let at = unit.map_or_else(|| Ok(None), |unit| self.stands_at(id, unit));
            let damaged = unit.is_none() || matches!(at, Err(ReadError::Damaged { .. }));
            // Its time is up whatever can be read of it.
            let unit = if damaged {
                self.find(queue, id)?
            } else {
                let of = |due| {
                    Some(UnitKey {
                        queue,
                        due,
                        id,
                        unit: unit?,
                    })
                };
                at?.and_then(of)
            };
            units.push((key, unit));
        }
        Ok((units, more))
    }

    /// The time in a unit's `due` key.
    fn stands_at(&self, id: MessageId, unit: u16) -> Result<Option<Timestamp>, ReadError> {
        if let Some(state) = self.state(id, unit)? {
            return Ok(Some(state.due));
        }
        let envelope = self.envelope(id)?;
        Ok(envelope.and_then(|envelope| envelope.units.get(usize::from(unit)).map(|unit| unit.due)))
    }

    /// The unit of a message in a queue, of which there is one, by looking for it in all of the queue.
    fn find(&self, queue: QueueId, id: MessageId) -> Result<Option<UnitKey>, ReadError> {
        let mut aside = self.set_aside_of(id)?.into_iter().map(|aside| aside.unit);
        if let Some(unit) = aside.find(|unit| unit.queue == queue) {
            return Ok(Some(unit));
        }
        let mut found = None;
        let from = queue.0.to_be_bytes();
        self.store
            .scan_past(Family::Due, &from, &keys::due_end(queue), &mut |key, _| {
                found = keys::parse_due(key).filter(|unit| unit.id == id);
                found.is_none()
            })?;
        Ok(found)
    }

    /// The message that has waited longest among those whose ids are `from` and later. Looking begins there because what was
    /// deleted before it takes time to pass by.
    pub fn oldest(&self, from: Option<MessageId>) -> Result<Option<MessageId>, ReadError> {
        let from = from.map_or([0; 16], |id| *id.as_bytes());
        let mut found = None;
        // Above all ids, which are of 16 octets.
        let end = [0xff; 17];
        self.store
            .scan_past(Family::Envelope, &from, &end, &mut |key, _| {
                found = key.try_into().ok().map(MessageId::from_bytes);
                found.is_none()
            })?;
        Ok(found)
    }

    /// What of a message never changes.
    pub fn envelope(&self, id: MessageId) -> Result<Option<EnvelopeRecord>, ReadError> {
        read(&*self.store, Family::Envelope, id.as_bytes())
    }

    /// What of a unit changes; `None` before its first deferral, and after its end.
    pub fn state(&self, id: MessageId, unit: u16) -> Result<Option<StateRecord>, ReadError> {
        read(&*self.store, Family::State, &keys::state(id, unit))
    }

    /// A message with its open units; `None` once all have ended.
    pub fn message(&self, id: MessageId) -> Result<Option<Message>, ReadError> {
        let Some(envelope) = self.envelope(id)? else {
            return Ok(None);
        };
        let mut units = Vec::new();
        for (number, unit) in (0..u16::MAX).zip(&envelope.units) {
            let state = match self.state(id, number) {
                Ok(state) => state,
                Err(ReadError::Damaged { .. }) => {
                    // It waits, or it would have none.
                    let key = self.find(unit.queue, id)?;
                    let aside = key.map(|key| self.aside(&key)).transpose()?.flatten();
                    let state = None;
                    units.extend(key.map(|key| Unit { key, state, aside }));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let due = state.as_ref().map_or(unit.due, |state| state.due);
            let key = UnitKey {
                queue: unit.queue,
                due,
                id,
                unit: number,
            };
            if self.is_due(&key)? {
                let aside = None;
                units.push(Unit { key, state, aside });
            } else if let Some(aside) = self.aside(&key)? {
                let due = aside.due;
                let key = UnitKey { due, ..key };
                let aside = Some(aside);
                units.push(Unit { key, state, aside });
            }
        }
        Ok(Some(Message { id, envelope, units }))
    }

    /// A message's whole body, verified. In memory: see [`Self::body_chunk`] for one of any size.
    pub fn body(&self, id: MessageId, envelope: &EnvelopeRecord) -> Result<Bytes, ReadError> {
        if let [sum] = *envelope.chunks {
            return self.body_chunk(id, 0, sum);
        }
        let mut body = BytesMut::with_capacity(usize::try_from(envelope.body_bytes).unwrap_or(0));
        for (number, &sum) in (0..).zip(&envelope.chunks) {
            body.extend_from_slice(&self.body_chunk(id, number, sum)?);
        }
        Ok(body.freeze())
    }

    /// One chunk of a message's body, verified: `sum` is the envelope's for it (see [`EnvelopeRecord::chunks`]).
    pub fn body_chunk(&self, id: MessageId, number: u32, sum: u32) -> Result<Bytes, ReadError> {
        let key = keys::body(id, number);
        let chunk = self
            .store
            .get(Family::Body, &key)?
            .ok_or_else(|| ReadError::damaged("body", &key, "absent"))?;
        if !verifies(&chunk, sum) {
            return Err(ReadError::damaged("body", &key, "checksum"));
        }
        Ok(chunk.into())
    }

    /// The octets that a unit counts in its queue; `None` where it is gone or has moved.
    pub fn unit_bytes(&self, unit: &UnitKey) -> Result<Option<u64>, ReadError> {
        let record: Option<DueRecord> = read(&*self.store, Family::Due, &keys::due(unit))?;
        Ok(record.map(|record| record.bytes))
    }

    /// Why a destination rests, if it does.
    pub fn held(&self, scope: &HoldScope) -> Result<Option<HoldRecord>, ReadError> {
        read(&*self.store, Family::Hold, &keys::hold(scope))
    }

    /// What rests, and why: domains, then lanes, each by name. Those whose time is over may be among them.
    pub fn holds(&self, limit: usize) -> Result<Vec<(HoldScope, HoldRecord)>, ReadError> {
        self.holds_after(None, limit)
    }

    /// The same from the one after this one on, whether that is there or not.
    pub fn holds_after(
        &self,
        after: Option<&HoldScope>,
        limit: usize,
    ) -> Result<Vec<(HoldScope, HoldRecord)>, ReadError> {
        // The next key there can be.
        let from = after.map_or_else(
            || vec![keys::HOLDS],
            |after| [&keys::hold(after)[..], &[0]].concat(),
        );
        self.page(Family::Hold, &from, &[u8::MAX], limit, keys::parse_hold)
    }

    /// Events from number `from` on, with their numbers.
    pub fn events(&self, from: u64, limit: usize) -> Result<Vec<(u64, Event)>, ReadError> {
        let (from, to) = (keys::event(from), keys::event(u64::MAX));
        self.page(Family::Event, &from, &to, limit, keys::number)
    }

    /// A message's events, oldest first, as far as the journal still has them. Looks through a bounded number of entries
    /// from the time of the message's id on.
    pub fn history(&self, id: MessageId) -> Result<Vec<Event>, ReadError> {
        let last = read_counters(&*self.store)?.next_event;
        let mut from = self.first_event_at(id.created(), last)?;
        let mut history = Vec::new();
        let mut looked = 0;
        while looked < HISTORY_SCAN {
            let page = self.events(from, 1_000)?;
            let Some((number, _)) = page.last() else { break };
            (from, looked) = (number + 1, looked + page.len());
            history.extend(
                page.into_iter()
                    .map(|(_, event)| event)
                    .filter(|event| event.id == Some(id)),
            );
        }
        Ok(history)
    }

    /// The number of the first event not older than `at`, less a margin for events written a little out of order.
    pub(crate) fn first_event_at(&self, at: Timestamp, last: u64) -> Result<u64, ReadError> {
        let at = Timestamp(at.0.saturating_sub(60_000));
        let (mut low, mut high) = (0, last);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.events(middle, 1)?.first() {
                Some((_, event)) if event.at < at => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}
