//! The one writer: it turns a group of requests into one batch and one sync.

mod adjustment;
mod anew;
mod aside;
mod import;
mod mend;
mod operator;
mod queues;
mod request;
mod settle;
mod weight;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mail_core::MessageId;

use crate::aside::DamageCounts;
use crate::index;
use crate::keys;
use crate::message::{Accepted, NewMessage};
use crate::names::{HoldScope, QueueId, QueueName, UnitKey};
use crate::records::{
    Counters, DueRecord, EnvelopeRecord, Event, EventKind, Record, TotalsRecord, UnitRecord, decode, unseal,
};
use crate::store::{Batch, Family, Store, StoreError};
use crate::unsynced::Unsynced;
use crate::upload;
use crate::usage::{Amount, Reserved, Usage};
use crate::{CommitError, ReadError};

use queues::{
    CachedQueue, DELETIONS_BEFORE_SEEK, NOTHING_WAITS, added_due, first_due, lower_wake,
    sleep_if_nothing_waits,
};
use request::{Answer, is_synced};
pub(crate) use request::{Failed, Reply, Request, Written};

/// Queues whose record and number are kept in memory, some 300 octets each; all are forgotten when there are more.
const CACHED_QUEUES: usize = 32_768;

/// See the module. It runs on a thread of its own, or inline in tests.
pub(crate) struct Committer {
    store: Arc<dyn Store>,
    counters: Counters,
    damage: Arc<DamageCounts>,
    usage: Arc<Usage>,
    numbers: HashMap<QueueName, QueueId>,
    queues: HashMap<QueueId, CachedQueue>,
    /// What waits of each tenant's stream, by its key.
    totals: HashMap<(Arc<str>, Arc<str>), TotalsRecord>,
    /// Queues whose record this group writes.
    touched: Vec<QueueId>,
    /// None before they are first changed.
    adjustments: Option<adjustment::Standing>,
    /// Room for the next group's writes.
    batch: Batch,
}

/// What a group has done so far that the store does not show yet.
#[derive(Default)]
struct Group {
    batch: Batch,
    gone: HashSet<UnitKey>,
    open_units: HashMap<MessageId, u16>,
    answers: Vec<Answer>,
    /// It holds more than chunks of messages to come.
    synced: bool,
    /// Queues in which it changes how much waits.
    changed: Vec<(Arc<str>, Amount, Amount)>,
    /// Room for what it takes in, until that is counted.
    reserved: Vec<Reserved>,
}

impl Committer {
    /// On a store whose `meta` is in place.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        damage: Arc<DamageCounts>,
        usage: Arc<Usage>,
    ) -> Result<Self, ReadError> {
        let counters = read_counters(&*store)?;
        usage.load(index::totals(&*store));
        Ok(Self {
            store,
            counters,
            damage,
            usage,
            numbers: HashMap::new(),
            queues: HashMap::new(),
            totals: HashMap::new(),
            touched: Vec::new(),
            adjustments: None,
            batch: Batch::default(),
        })
    }

    /// The group last written.
    pub(crate) fn group(&self) -> u64 {
        self.counters.group
    }

    /// Writes a group, syncs it and answers all that wait for it. An error says that the store failed: nothing of the group was
    /// acknowledged, and nothing more must be.
    pub(crate) fn commit(&mut self, requests: impl IntoIterator<Item = Request>) -> Result<(), Box<Failed>> {
        self.put(requests, None)?.answer();
        Ok(())
    }

    /// Writes a group, which whoever calls has to sync before it is answered. Until then its new messages are `unsynced`.
    pub(crate) fn write_ahead(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        unsynced: &Unsynced,
    ) -> Result<Written, Box<Failed>> {
        self.put(requests, Some(unsynced))
    }

    fn put(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        ahead: Option<&Unsynced>,
    ) -> Result<Written, Box<Failed>> {
        let mut group = Group {
            batch: std::mem::take(&mut self.batch),
            ..Group::default()
        };
        let mut requests = requests.into_iter();
        while let Some(request) = requests.next() {
            if let Err(error) = self.take(&mut group, request) {
                return Err(self.fail(group, requests, error.into()));
            }
        }
        let waits_for_sync = match self.write(&mut group, ahead) {
            Ok(waits) => waits,
            Err(error) => return Err(self.fail(group, requests, error)),
        };
        group.batch.clear();
        self.batch = group.batch;
        Ok(Written {
            unsynced: waits_for_sync.then_some(self.counters.group),
            answers: group.answers,
        })
    }

    /// Whether it is still to be synced, which is not done here where it is written `ahead`.
    fn write(&mut self, group: &mut Group, ahead: Option<&Unsynced>) -> Result<bool, ReadError> {
        self.finish(group)?;
        let syncs = is_synced(group) && !group.batch.is_empty();
        if let Some(unsynced) = ahead.filter(|_| syncs) {
            // Before anyone can read them.
            unsynced.hide(group.answers.iter().flat_map(Answer::messages));
        }
        if !group.batch.is_empty() {
            self.store.write(&group.batch, syncs && ahead.is_none())?;
        }
        self.usage.change(group.changed.drain(..));
        group.reserved.clear();
        Ok(syncs && ahead.is_some())
    }

    /// An error says that the store failed. A request that meets a damaged record is refused alone, before it has written
    /// anything: one bad record must not stop all other mail, now and after each restart.
    fn take(&mut self, group: &mut Group, request: Request) -> Result<(), StoreError> {
        group.synced |= !matches!(
            request,
            Request::Chunk { .. }
                | Request::Abandon(_)
                | Request::Nudge
                // A power cut that takes these back leaves lower bounds, and what is found again.
                | Request::Rest { .. }
                | Request::Present(_)
                | Request::Lift { .. }
                | Request::Forget { .. }
        );
        match request {
            Request::Chunk {
                of,
                number,
                octets,
                reply,
            } => {
                upload::put(&mut group.batch, of.id(), number, octets);
                group.answers.push(Answer::Done(reply, Ok(())));
                Ok(())
            }
            Request::Abandon(abandoned) => {
                upload::delete(&mut group.batch, abandoned);
                Ok(())
            }
            Request::Nudge => Ok(()),
            Request::Accept {
                message,
                chunks,
                reserved,
                reply,
            } => {
                group.reserved.extend(reserved);
                let accepted = self
                    .place(group, &message)
                    .and_then(|units| self.accept(group, &message, units, chunks));
                let (result, fate) = verdict(accepted);
                group.answers.push(Answer::Accepted(reply, result));
                fate
            }
            Request::Settle { settle, reply } => {
                let (result, fate) = verdict(self.settle(group, &settle));
                let result = result.and_then(|settled| settled.ok_or(CommitError::Gone));
                group.answers.push(Answer::Settled(reply, result, settle));
                fate
            }
            Request::Rest { queue, until } => {
                let (result, fate) = verdict(self.rest(group, queue, until));
                if let Err(error) = result {
                    tracing::error!(%queue, %error, "a queue can't be set to rest");
                }
                fate
            }
            Request::Hold { scope, record } => {
                let event = Event {
                    at: record.since,
                    kind: EventKind::Deferred,
                    id: None,
                    queue: None,
                    unit: 0,
                    recipients: Vec::new(),
                    attempt: record.failures,
                    hop: None,
                    reply: format!("{}: {}", scope_name(&scope), record.cause),
                    tag: None,
                    metadata: Vec::new(),
                };
                group.batch.put_record(Family::Hold, &keys::hold(&scope), &record);
                self.journal(group, &event);
                Ok(())
            }
            Request::Present(record) => {
                group.batch.put_record(Family::Meta, keys::PRESENCE, &record);
                Ok(())
            }
            Request::Forget { notices } => {
                for notice in notices {
                    group.batch.delete(Family::Notice, notice.as_bytes());
                }
                Ok(())
            }
            Request::Lift { scope } => {
                group.batch.delete(Family::Hold, &keys::hold(&scope));
                Ok(())
            }
            Request::Suspend { record, reply } => {
                self.suspend(group, &record);
                group.answers.push(Answer::Done(reply, Ok(())));
                Ok(())
            }
            Request::Resume {
                selector,
                by,
                at,
                reply,
            } => {
                self.resume(group, &selector, &by, at);
                group.answers.push(Answer::Done(reply, Ok(())));
                Ok(())
            }
            Request::Count { counts, reply } => {
                for (scope, record) in counts {
                    match record {
                        Some(record) => group.batch.put_record(Family::Count, &scope.key(), &record),
                        None => group.batch.delete(Family::Count, &scope.key()),
                    }
                }
                group.answers.push(Answer::Done(reply, Ok(())));
                Ok(())
            }
            Request::Adjust { record, reply } => {
                self.adjust(group, &record);
                let answer = reply.map(|reply| Answer::Done(reply, Ok(())));
                group.answers.extend(answer);
                Ok(())
            }
            Request::EndAdjustment {
                key,
                as_of,
                by,
                at,
                reply,
            } => {
                self.end_adjustment(group, &key, as_of, &by, at);
                let answer = reply.map(|reply| Answer::Done(reply, Ok(())));
                group.answers.extend(answer);
                Ok(())
            }
            Request::Retry { unit, due, by, reply } => {
                let (result, fate) = verdict(self.retry(group, unit, due, &by));
                let result = result.and_then(|there| there.then_some(()).ok_or(CommitError::Gone));
                group.answers.push(Answer::Done(reply, result));
                fate
            }
            Request::SetAside { unit, aside, reply } => {
                let (result, fate) = verdict(self.set_aside(group, unit, &aside));
                let result = result.and_then(|there| there.then_some(()).ok_or(CommitError::Gone));
                group.answers.push(Answer::Done(reply, result));
                fate
            }
            Request::Import { batch, reply } => {
                let (result, fate) = verdict(self.import(group, &batch));
                group.answers.push(Answer::Done(reply, result));
                fate
            }
            Request::Damaged(met) => self.set_record_aside(group, &met),
            Request::Mend { queue } => {
                let (result, fate) = verdict(self.queue_mut(group, queue).map(drop));
                if let Err(error) = result {
                    tracing::error!(%queue, %error, "a queue's record can't be made anew");
                }
                fate
            }
        }
    }

    /// Where a message's units belong. Reads all that [`Self::accept`] needs, so that it meets no damage half-way.
    fn place(&mut self, group: &mut Group, message: &NewMessage) -> Result<Vec<UnitKey>, ReadError> {
        let mut units = Vec::with_capacity(message.units.len());
        for (number, unit) in (0..u16::MAX).zip(&message.units) {
            let queue = self.queue_number(group, message, unit)?;
            self.queue_mut(group, queue)?;
            units.push(UnitKey {
                queue,
                due: unit.due,
                id: message.id,
                unit: number,
            });
        }
        Ok(units)
    }

    /// Keeps a message whose units have been [`Self::place`]d.
    fn accept(
        &mut self,
        group: &mut Group,
        message: &NewMessage,
        units: Vec<UnitKey>,
        chunks: Vec<u32>,
    ) -> Result<Accepted, ReadError> {
        let unit_records = units
            .iter()
            .zip(&message.units)
            .map(|(key, unit)| UnitRecord {
                queue: key.queue,
                due: unit.due,
                recipients: unit.recipients.clone(),
            })
            .collect();
        let bytes = message.bytes();
        let due = DueRecord {
            expires_at: message.expires_at,
            bytes,
            chunks: chunks.len() as u32,
            alone: units.len() == 1,
            tried: false,
        };
        for unit in &units {
            group.batch.put_record(Family::Due, &keys::due(unit), &due);
            let deadline = keys::deadline(message.expires_at, unit.queue, unit.id);
            let number = unit.unit.to_be_bytes();
            group.batch.put_sealed(Family::Deadline, &deadline, &number);
            if message.wants_notice(unit.unit) {
                let notice = keys::notice(message.released_at(), &message.transfer, unit.queue, unit.id);
                group.batch.put_sealed(Family::Notice, &notice, &number);
            }
            let queue = self.queue_mut(group, unit.queue)?;
            queue.record.count += 1;
            queue.record.bytes += bytes;
            queue.waits(unit);
            lower_wake(group, queue, unit.queue, unit.due);
        }
        if units.len() > 1 {
            let open = (units.len() as u16).to_be_bytes();
            let key = keys::open_units(message.id);
            group.batch.put_sealed(Family::State, &key, &open);
        }
        match &message.rest {
            Some(rest) => {
                let first = keys::body(message.id, 0);
                group.batch.put(Family::Body, &first, message.body.clone());
                group.batch.delete(Family::Upload, message.id.as_bytes());
                rest.keep();
            }
            None => {
                for (number, start) in (0..).zip((0..message.body.len()).step_by(keys::CHUNK)) {
                    let end = message.body.len().min(start + keys::CHUNK);
                    let key = keys::body(message.id, number);
                    group
                        .batch
                        .put(Family::Body, &key, message.body.slice(start..end));
                }
            }
        }
        let recipients = message.units.iter().flat_map(|unit| &unit.recipients);
        let event = Event {
            at: message.received_at,
            kind: EventKind::Accepted,
            id: Some(message.id),
            queue: None,
            unit: 0,
            recipients: recipients
                .map(|recipient| recipient.mailbox.to_string())
                .collect(),
            attempt: 0,
            hop: None,
            reply: String::new(),
            tag: message.tag.clone(),
            metadata: message.metadata.clone(),
        };
        let envelope = EnvelopeRecord {
            received_at: message.received_at,
            expires_at: message.expires_at,
            tenant: message.tenant.clone(),
            stream: message.stream.clone(),
            reverse_path: message.reverse_path.clone(),
            body_type: message.body_type,
            smtputf8: message.smtputf8,
            dsn: message.dsn.clone(),
            transfer: message.transfer,
            tag: message.tag.clone(),
            metadata: message.metadata.clone(),
            prefix: message.prefix.clone(),
            body_bytes: message.body_bytes(),
            chunks,
            origin: message.origin.clone(),
            cause: message.cause,
            units: unit_records,
        };
        group
            .batch
            .put_record(Family::Envelope, message.id.as_bytes(), &envelope);
        self.journal(group, &event);
        Ok(Accepted {
            id: message.id,
            units,
        })
    }

    /// Writes the records of the queues touched, what they change of the totals, and the counters.
    fn finish(&mut self, group: &mut Group) -> Result<(), ReadError> {
        let mut changed = HashSet::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(queue) = self.queues.get_mut(&id) else {
                continue;
            };
            queue.touched = false;
            if queue.deletions >= DELETIONS_BEFORE_SEEK {
                queue.deletions = 0;
                match first_due(&*self.store, id, queue.record.low_water) {
                    // Keys of this group are not in the store yet; the mark may not pass them.
                    Ok(first) => {
                        let first = first.into_iter().chain(added_due(&group.batch, id)).min();
                        queue.record.low_water = first.unwrap_or(NOTHING_WAITS);
                    }
                    // What lies there may read again, in another store: the mark stays before it.
                    Err(damage @ ReadError::Damaged { .. }) => {
                        tracing::error!(queue = %id, error = %damage, "a queue's low-water mark stays where it is");
                    }
                    Err(error) => return Err(error),
                }
            }
            group
                .batch
                .put_record(Family::Queues, &keys::record(id), &queue.record);
            let counts = (queue.record.count, queue.record.bytes);
            let before = std::mem::replace(&mut queue.counted, counts);
            if before != counts {
                let name = (queue.record.name.tenant.clone(), queue.record.name.stream.clone());
                let amount = |(messages, bytes)| Amount { messages, bytes };
                group
                    .changed
                    .push((name.0.clone(), amount(before), amount(counts)));
                if !self.totals.contains_key(&name) {
                    let total = index::read_totals(&*self.store, &keys::totals(&name.0, &name.1))?;
                    let total = total.unwrap_or_else(|| {
                        // The next start counts all anew.
                        group.batch.delete(Family::Meta, keys::INDEX);
                        TotalsRecord::default()
                    });
                    self.totals.insert(name.clone(), total);
                }
                if let Some(total) = self.totals.get_mut(&name) {
                    total.change(before, counts);
                }
                changed.insert(name);
            }
        }
        for name in changed {
            if let Some(total) = self.totals.get(&name) {
                let key = keys::totals(&name.0, &name.1);
                group.batch.put_record(Family::Queues, &key, total);
            }
        }
        // All that the group touched is in its batch. A large group's room is given back, too.
        if self.queues.len() > CACHED_QUEUES {
            self.queues.clear();
            self.queues.shrink_to(CACHED_QUEUES);
            self.numbers.clear();
            self.numbers.shrink_to(CACHED_QUEUES);
            self.totals = HashMap::new();
        }
        // The mark is told of groups that were synced.
        if group.batch.is_empty() || !group.synced {
            return Ok(());
        }
        self.counters.group += 1;
        group
            .batch
            .put_record(Family::Meta, keys::COUNTERS, &self.counters);
        Ok(())
    }

    fn open_units(&self, group: &mut Group, id: MessageId) -> Result<u16, ReadError> {
        if let Some(&open) = group.open_units.get(&id) {
            return Ok(open);
        }
        let key = keys::open_units(id);
        let damage = match get(&*self.store, Family::State, &key) {
            Ok(Some(octets)) => match unseal(&octets) {
                Ok(octets) => return Ok(u16::from_be_bytes(octets)),
                Err(damaged) => ReadError::damaged("state", &key, damaged.0),
            },
            Ok(None) => ReadError::damaged("state", &key, "absent"),
            Err(damage @ ReadError::Damaged { .. }) => damage,
            Err(error) => return Err(error),
        };
        self.damage.met(&damage);
        let open = anew::open_units(&*self.store, &group.gone, id, damage)?;
        // From here on it is counted by what the group does.
        group.open_units.insert(id, open);
        Ok(open)
    }

    fn journal(&mut self, group: &mut Group, event: &Event) {
        let key = keys::event(self.counters.next_event);
        self.counters.next_event += 1;
        group.batch.put_record(Family::Event, &key, event);
    }
}

/// What whoever waits is told, and whether the group can go on.
fn verdict<T>(done: Result<T, ReadError>) -> (Result<T, CommitError>, Result<(), StoreError>) {
    match done {
        Ok(done) => (Ok(done), Ok(())),
        Err(damage @ ReadError::Damaged { .. }) => (Err(CommitError::Damaged(damage.to_string())), Ok(())),
        Err(ReadError::Store(error)) => (Err(CommitError::Failing(error.to_string())), Err(error)),
    }
}

/// CRC32C of each chunk of a message's body. What is at hand of a large one is one chunk, whatever it has grown to.
pub(crate) fn chunk_sums(message: &NewMessage) -> Vec<u32> {
    let Some(rest) = &message.rest else {
        return message.body.chunks(keys::CHUNK).map(crc32c::crc32c).collect();
    };
    std::iter::once(crc32c::crc32c(&message.body))
        .chain(rest.sums().iter().copied())
        .collect()
}

/// A key's value; it is named where it does not read.
pub(crate) fn get(store: &dyn Store, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
    let found = store.get(family, key);
    found.map_err(|error| ReadError::unreadable(family.name(), key, error))
}

/// Reads and checks a record.
pub(crate) fn read<T: Record>(store: &dyn Store, family: Family, key: &[u8]) -> Result<Option<T>, ReadError> {
    let Some(octets) = get(store, family, key)? else {
        return Ok(None);
    };
    decode(&octets)
        .map(Some)
        .map_err(|error| ReadError::damaged(family.name(), key, error.0))
}

/// The counters, or those of an empty store.
pub(crate) fn read_counters(store: &dyn Store) -> Result<Counters, ReadError> {
    let counters = read(store, Family::Meta, keys::COUNTERS)?;
    Ok(counters.unwrap_or(Counters {
        group: 0,
        next_queue: 1,
        next_event: 1,
    }))
}

fn scope_name(scope: &HoldScope) -> &str {
    match scope {
        HoldScope::Domain(domain) => domain.as_str(),
        HoldScope::Lane(lane) => lane,
    }
}

#[cfg(test)]
mod tests {
    use mail_core::Timestamp;

    use super::*;
    use crate::intake::tests::message;
    use crate::message::NewUnit;
    use crate::names::RouteGroup;
    use crate::store::MemoryStore;

    /// What is told of queues alone is never synced, and there is no other group while all mail waits.
    #[test]
    fn queues_are_forgotten_though_nothing_is_synced() {
        let (store, queues) = (MemoryStore::new(), 50_000);
        let mut committer = Committer::new(Arc::new(store), Arc::default(), Arc::default()).unwrap();
        for number in 0..2 {
            let unit = |unit: u64| NewUnit {
                domain: format!("d{number}-{unit}.test").parse().unwrap(),
                route_group: RouteGroup(0),
                due: Timestamp(1_000),
                recipients: Vec::new(),
            };
            let mut message = Arc::unwrap_or_clone(message(number));
            message.units = (0..queues / 2).map(unit).collect();
            let (reply, _) = tokio::sync::oneshot::channel();
            let chunks = chunk_sums(&message);
            let request = Request::Accept {
                message: Arc::new(message),
                chunks,
                reserved: None,
                reply,
            };
            committer
                .commit([request])
                .unwrap_or_else(|failed| panic!("{}", failed.error));
        }
        let group = committer.group();
        let mut most = 0;
        for queue in 1..=queues {
            let rest = Request::Rest {
                queue: QueueId(queue),
                until: Some(Timestamp(2_000 + queue)),
            };
            committer
                .commit([rest])
                .unwrap_or_else(|failed| panic!("{}", failed.error));
            most = most.max(committer.queues.len());
        }
        assert_eq!(committer.group(), group, "none was synced");
        assert!(
            most <= CACHED_QUEUES && committer.queues.capacity() <= 4 * CACHED_QUEUES,
            "{most}"
        );
        let stored: crate::QueueRecord =
            read(&*committer.store, Family::Queues, &keys::record(QueueId(queues)))
                .unwrap()
                .unwrap();
        assert_eq!(stored.wake, Some(Timestamp(2_000 + queues)));
    }
}
