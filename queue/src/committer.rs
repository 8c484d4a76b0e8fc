//! The one writer: it turns a group of requests into one batch and one sync.

mod adjustment;
mod anew;
mod aside;
mod import;
mod mend;
mod operator;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use mail_core::{MessageId, Timestamp};
use tokio::sync::oneshot;

use crate::adjustment::{AdjustmentKey, AdjustmentRecord};
use crate::aside::{Aside, DamageCounts, Met};
use crate::counts::CountsRecord;
use crate::index;
use crate::keys;
use crate::message::{Accepted, NewMessage, NewUnit, Settle, Settled};
use crate::names::{HoldScope, QueueId, QueueName, Scope, UnitKey};
use crate::records::{
    Counters, DueRecord, EnvelopeRecord, Event, EventKind, HoldRecord, QueueRecord, Record, StateRecord,
    SuspensionRecord, TotalsRecord, UnitRecord, Waiting, decode, unseal,
};
use crate::store::{Batch, Family, Store, StoreError};
use crate::suspension::Selector;
use crate::unsynced::Unsynced;
use crate::upload::{self, Abandoned, Leftover};
use crate::usage::{Amount, Reserved, Usage};
use crate::{CommitError, DeadlineKey, ReadError};

/// Queues whose record and number are kept in memory, some 300 octets each; all are forgotten when there are more.
const CACHED_QUEUES: usize = 32_768;

/// Deletions at a queue's head after which its low-water mark is moved on. Finding the new one passes as many tombstones.
const DELETIONS_BEFORE_SEEK: u32 = 1_024;

/// A request and whoever waits for it.
pub(crate) enum Request {
    Accept {
        message: Arc<NewMessage>,
        chunks: Vec<u32>,
        reserved: Option<Reserved>,
        reply: Reply<Accepted>,
    },
    /// A part of a message to come; not synced by itself.
    Chunk {
        of: Arc<Leftover>,
        number: u32,
        octets: Bytes,
        reply: Reply<()>,
    },
    /// The message will not come.
    Abandon(Abandoned),
    /// Lets a group begin; nothing else.
    Nudge,
    Settle {
        settle: Box<Settle>,
        reply: Reply<Settled>,
    },
    Rest {
        queue: QueueId,
        until: Option<Timestamp>,
    },
    Hold {
        scope: HoldScope,
        record: HoldRecord,
    },
    /// These have been told of, or are gone.
    Forget {
        notices: Vec<DeadlineKey>,
    },
    Lift {
        scope: HoldScope,
    },
    Suspend {
        record: Box<SuspensionRecord>,
        reply: Reply<()>,
    },
    Resume {
        selector: Selector,
        by: String,
        at: Timestamp,
        reply: Reply<()>,
    },
    Count {
        counts: Vec<(Scope, Option<CountsRecord>)>,
        reply: Reply<()>,
    },
    Adjust {
        record: Box<AdjustmentRecord>,
        reply: Option<Reply<()>>,
    },
    EndAdjustment {
        key: Box<AdjustmentKey>,
        /// Unless it has changed since.
        as_of: Option<Timestamp>,
        by: String,
        at: Timestamp,
        reply: Option<Reply<()>>,
    },
    Retry {
        unit: UnitKey,
        due: Timestamp,
        by: String,
        reply: Reply<()>,
    },
    SetAside {
        unit: UnitKey,
        aside: Box<Aside>,
        reply: Reply<()>,
    },
    Import {
        batch: Arc<crate::import::Batch>,
        reply: Reply<()>,
    },
    /// A record that did not verify, and that mail can do without.
    Damaged(Met),
    /// The record of this queue did not verify.
    Mend {
        queue: QueueId,
    },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, CommitError>>;

/// What waits for an answer waits for a sync.
fn is_synced(group: &Group) -> bool {
    #[cfg(feature = "sabotage")]
    if crate::intake::sabotaged("no-sync") {
        return false;
    }
    group.synced
}

/// Whom to answer once the group is synced.
enum Answer {
    Accepted(Reply<Accepted>, Result<Accepted, CommitError>),
    /// With what was asked for, should it have to be written again.
    Settled(Reply<Settled>, Result<Settled, CommitError>, Box<Settle>),
    Done(Reply<()>, Result<(), CommitError>),
}

impl Answer {
    /// Messages that are new with it: the one accepted, or the reports of an end.
    fn messages(&self) -> impl Iterator<Item = MessageId> {
        let (accepted, reports) = match self {
            Self::Accepted(_, Ok(accepted)) => (Some(accepted), &[][..]),
            Self::Settled(_, Ok(settled), _) => (None, &settled.reports[..]),
            _ => (None, &[][..]),
        };
        accepted.into_iter().chain(reports).map(|message| message.id)
    }

    fn send(self) {
        // A receiver that is gone no longer wants to know.
        match self {
            Self::Accepted(reply, result) => drop(reply.send(result)),
            Self::Settled(reply, result, _) => drop(reply.send(result)),
            Self::Done(reply, result) => drop(reply.send(result)),
        }
    }
}

/// A group that is in the store.
pub(crate) struct Written {
    /// Its number, if it is to be synced before anyone is answered.
    pub(crate) unsynced: Option<u64>,
    answers: Vec<Answer>,
}

impl Written {
    /// Messages that are new with it.
    pub(crate) fn messages(&self) -> impl Iterator<Item = MessageId> {
        self.answers.iter().flat_map(Answer::messages)
    }

    /// Tells all that wait for it.
    pub(crate) fn answer(self) {
        self.answers.into_iter().for_each(Answer::send);
    }
}

/// What is left of a group whose write failed. Perhaps it is in the store all the same.
pub(crate) struct Failed {
    pub(crate) error: CommitError,
    /// Messages that nobody was told were kept.
    pub(crate) unanswered: Vec<MessageId>,
    /// What became of units. Peers have been told so; it is to be written as soon as that is possible.
    pub(crate) kept: Vec<Request>,
    /// Who waits to be told, by [`Failed::tell`].
    refused: Vec<Answer>,
}

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

struct CachedQueue {
    record: QueueRecord,
    /// Units and octets that the totals count for it.
    counted: (u64, u64),
    deletions: u32,
    touched: bool,
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
            queue.record.low_water = queue.record.low_water.min(unit.due);
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

    /// `None` where the claim is void: the unit's due key is gone.
    fn settle(&mut self, group: &mut Group, settle: &Settle) -> Result<Option<Settled>, ReadError> {
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
                    queue.record.low_water = queue.record.low_water.min(again.due);
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

    fn end_unit(
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

    /// Moves a queue's catalogue key to its first due time, or to `until` if that is later.
    fn rest(&mut self, group: &mut Group, id: QueueId, until: Option<Timestamp>) -> Result<(), ReadError> {
        // What this group does to the queue is not in the store yet. What it adds has lowered the key already; what it takes
        // away makes the first due time told here too early: a lower bound still, but none to be moved up to.
        let may_raise = !self.touched.contains(&id);
        let record = &self.cached(group, id)?.record;
        let (low_water, wake) = (record.low_water, record.wake);
        let (Some(first), Some(wake)) = (first_due(&*self.store, id, low_water)?, wake) else {
            return Ok(());
        };
        let to = first.max(until.unwrap_or(first));
        if to < wake || (to > wake && may_raise) {
            group.batch.delete(Family::Queues, &keys::catalogue(wake, id));
            group
                .batch
                .put_copy(Family::Queues, &keys::catalogue(to, id), &[]);
            self.queue_mut(group, id)?.record.wake = Some(to);
        }
        Ok(())
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
                // Keys of this group are not in the store yet; the mark may not pass them.
                let first = first_due(&*self.store, id, queue.record.low_water)?;
                queue.record.low_water = first
                    .into_iter()
                    .chain(added_due(&group.batch, id))
                    .min()
                    .unwrap_or(Timestamp::MAX);
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
        // The mark is told of groups that were synced.
        if group.batch.is_empty() || !group.synced {
            return Ok(());
        }
        self.counters.group += 1;
        group
            .batch
            .put_record(Family::Meta, keys::COUNTERS, &self.counters);
        if self.queues.len() > CACHED_QUEUES {
            self.queues.clear();
            self.numbers.clear();
            self.totals.clear();
        }
        Ok(())
    }

    fn queue_number(
        &mut self,
        group: &mut Group,
        message: &NewMessage,
        unit: &NewUnit,
    ) -> Result<QueueId, ReadError> {
        let name = QueueName {
            tenant: message.tenant.clone(),
            stream: message.stream.clone(),
            route_group: unit.route_group,
            domain: unit.domain.clone(),
        };
        self.number(group, name)
    }

    fn number(&mut self, group: &mut Group, name: QueueName) -> Result<QueueId, ReadError> {
        if let Some(&id) = self.numbers.get(&name) {
            return Ok(id);
        }
        let key = keys::directory(&name);
        let id = match self.store.get(Family::Queues, &key)? {
            Some(octets) => match unseal(&octets) {
                Ok(number) => Some(QueueId(u64::from_be_bytes(number))),
                Err(_) => self.mend_directory(group, &name, &key)?,
            },
            None => None,
        };
        let id = match id {
            Some(id) => id,
            None => {
                let id = QueueId(self.counters.next_queue);
                self.counters.next_queue += 1;
                group.batch.put_sealed(Family::Queues, &key, &id.0.to_be_bytes());
                index::add(&mut group.batch, id, &name);
                let record = QueueRecord {
                    name: name.clone(),
                    count: 0,
                    bytes: 0,
                    low_water: Timestamp::MAX,
                    wake: None,
                    aside: 0,
                };
                self.queues.insert(
                    id,
                    CachedQueue {
                        record,
                        counted: (0, 0),
                        deletions: 0,
                        touched: true,
                    },
                );
                self.touched.push(id);
                id
            }
        };
        self.numbers.insert(name, id);
        Ok(id)
    }

    /// The queue's record, to be written with the group.
    fn queue_mut(&mut self, group: &mut Group, id: QueueId) -> Result<&mut CachedQueue, ReadError> {
        let (queue, touched) = self.cached_and_touched(group, id)?;
        if !std::mem::replace(&mut queue.touched, true) {
            touched.push(id);
        }
        Ok(queue)
    }

    /// The queue's record as it is.
    fn cached(&mut self, group: &mut Group, id: QueueId) -> Result<&mut CachedQueue, ReadError> {
        Ok(self.cached_and_touched(group, id)?.0)
    }

    fn cached_and_touched(
        &mut self,
        group: &mut Group,
        id: QueueId,
    ) -> Result<(&mut CachedQueue, &mut Vec<QueueId>), ReadError> {
        let queue = match self.queues.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let record: QueueRecord = match read(&*self.store, Family::Queues, &keys::record(id)) {
                    Ok(Some(record)) => record,
                    Ok(None) => return Err(ReadError::damaged("queues", &keys::record(id), "absent")),
                    Err(damage @ ReadError::Damaged { .. }) => {
                        self.damage.met(&damage);
                        // What the totals count for it is not known: the next start counts all anew.
                        group.batch.delete(Family::Meta, keys::INDEX);
                        anew::queue(&*self.store, &mut group.batch, id, damage)?
                    }
                    Err(error) => return Err(error),
                };
                entry.insert(CachedQueue {
                    counted: (record.count, record.bytes),
                    record,
                    // As if some had gone before: the mark moves on by and by, though queues are forgotten and read again.
                    deletions: (self.counters.group % u64::from(DELETIONS_BEFORE_SEEK)) as u32,
                    touched: false,
                })
            }
        };
        Ok((queue, &mut self.touched))
    }

    fn open_units(&self, group: &mut Group, id: MessageId) -> Result<u16, ReadError> {
        if let Some(&open) = group.open_units.get(&id) {
            return Ok(open);
        }
        let key = keys::open_units(id);
        let damage = match self.store.get(Family::State, &key)?.as_deref().map(unseal) {
            Some(Ok(octets)) => return Ok(u16::from_be_bytes(octets)),
            Some(Err(damaged)) => ReadError::damaged("state", &key, damaged.0),
            None => ReadError::damaged("state", &key, "absent"),
        };
        self.damage.met(&damage);
        let open = anew::open_units(&*self.store, &group.gone, id, damage)?;
        // From here on it is counted by what the group does.
        group.open_units.insert(id, open);
        Ok(open)
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

/// Reads and checks a record.
pub(crate) fn read<T: Record>(store: &dyn Store, family: Family, key: &[u8]) -> Result<Option<T>, ReadError> {
    let Some(octets) = store.get(family, key)? else {
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

/// When the first unit of a queue is due.
fn first_due(
    store: &dyn Store,
    queue: QueueId,
    low_water: Timestamp,
) -> Result<Option<Timestamp>, ReadError> {
    let from = keys::due(&UnitKey {
        queue,
        due: low_water,
        id: MessageId::from_bytes([0; 16]),
        unit: 0,
    });
    let mut first = None;
    store.scan(Family::Due, &from, &keys::due_end(queue), &mut |key, _| {
        first = keys::parse_due(key);
        false
    })?;
    Ok(first.map(|unit| unit.due))
}

/// When the first of the units that a batch adds to a queue is due.
fn added_due(batch: &Batch, queue: QueueId) -> Option<Timestamp> {
    let added = batch
        .writes()
        .filter(|write| write.family == Family::Due && write.value.is_some());
    added
        .filter_map(|write| keys::parse_due(write.key))
        .filter(|unit| unit.queue == queue)
        .map(|unit| unit.due)
        .min()
}

/// Takes a queue out of the catalogue where nothing in it waits for a time: it is empty, or all of it is set aside.
fn sleep_if_nothing_waits(group: &mut Group, queue: &mut CachedQueue, id: QueueId) {
    if queue.record.count > queue.record.aside {
        return;
    }
    queue.record.low_water = Timestamp::MAX;
    queue.deletions = 0;
    if let Some(wake) = queue.record.wake.take() {
        group.batch.delete(Family::Queues, &keys::catalogue(wake, id));
    }
}

fn lower_wake(group: &mut Group, queue: &mut CachedQueue, id: QueueId, due: Timestamp) {
    match queue.record.wake {
        Some(wake) if wake <= due => return,
        Some(wake) => group.batch.delete(Family::Queues, &keys::catalogue(wake, id)),
        None => {}
    }
    group
        .batch
        .put_copy(Family::Queues, &keys::catalogue(due, id), &[]);
    queue.record.wake = Some(due);
}

fn scope_name(scope: &HoldScope) -> &str {
    match scope {
        HoldScope::Domain(domain) => domain.as_str(),
        HoldScope::Lane(lane) => lane,
    }
}
