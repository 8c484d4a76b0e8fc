//! The relay as the admin API sees it: reads of the queue and its journal.

mod adjust;
mod aside;
mod classes;
mod limits;
pub mod manage;
mod operate;
pub(crate) mod scan;
mod suspend;
mod view;

use std::sync::Arc;
use std::time::Duration;

use admin_api::adjust::{Adjustment, AdjustmentList, AdjustmentsQuery, EndAdjustment, Ended, SetAdjustment};
use admin_api::aside::{AsideList, AsideQuery};
use admin_api::limits::LimitList;
use admin_api::operate::{
    Delete, Deletion, MessageList, MessagesQuery, Progress, Resume, Retry, Selector, Suspend, Suspension,
    SuspensionList,
};
use admin_api::{
    Caller, Control, ControlError, Hold, HoldList, MAX_PAGE, MessageView, QueueList, QueueSummary,
    QueuesQuery, Raw, Time,
};
use mail_core::{MessageId, Timestamp};
use queue::{
    HoldRecord, HoldScope, MAX_SUSPENSIONS, Queue, QueueId, QueueRecord, ReadError, SuspensionRecord,
    UnitKey, suspension,
};
use tokio::sync::{Mutex, Semaphore, mpsc};

use crate::config::Settings;
use crate::delivery::exchange::Doors;
use crate::delivery::parked;
use crate::shaping::Shaping;
use crate::world::Clock;

use view::view;

/// Reads at once; a message's history may look through many entries of the journal.
const READS: usize = 4;

/// How long a question waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Before all of a queue's units.
const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::LEAST, 0);

/// How long the shards may take to say what a unit waits for. It is left out then.
const WHY_PATIENCE: Duration = Duration::from_secs(1);

/// How long a part of a message waits for whoever reads it.
const RAW_PATIENCE: Duration = Duration::from_secs(60);

/// Queues in a page, unless said.
const PAGE: usize = 100;

/// Queue records looked at for one page, where most queues are empty.
const LOOKED_AT: usize = 50_000;

/// Holds shown, of so many that are read.
const MAX_HOLDS: usize = 1_000;
const MAX_HOLDS_READ: usize = 10 * MAX_HOLDS;

/// Answers from a queue.
pub struct QueueControl {
    queue: Queue,
    reader: Reader,
    doors: Doors,
    clock: Clock,
    /// One change of suspensions at a time.
    suspending: Mutex<()>,
    /// One walk through the queues at a time.
    walking: Mutex<()>,
    /// What the tokens of previews are made with.
    secret: [u8; 16],
    /// The configuration in force; without one replies mean what is shipped, and every name will do.
    settings: Option<Box<dyn Fn() -> Arc<Settings> + Send + Sync>>,
}

/// Reads on threads that may block, [`READS`] at once.
#[derive(Clone)]
struct Reader {
    queue: Queue,
    room: Arc<Semaphore>,
}

impl QueueControl {
    /// For this queue, whose units the shards behind `doors` own.
    pub fn new(queue: Queue, doors: Doors, clock: Clock) -> Self {
        let mut secret = [0; 16];
        // If this fails, so does all TLS.
        let _ = aws_lc_rs::rand::fill(&mut secret);
        let reader = Reader {
            queue: queue.clone(),
            room: Arc::new(Semaphore::new(READS)),
        };
        Self {
            queue,
            reader,
            doors,
            clock,
            suspending: Mutex::new(()),
            walking: Mutex::new(()),
            secret,
            settings: None,
        }
    }

    /// Goes by what `settings` says at any moment.
    pub fn with_settings(self, settings: impl Fn() -> Arc<Settings> + Send + Sync + 'static) -> Self {
        Self {
            settings: Some(Box::new(settings)),
            ..self
        }
    }

    /// What replies mean.
    fn shaping(&self) -> Arc<Shaping> {
        let settings = self.settings.as_ref().map(|settings| settings());
        settings.map_or_else(
            || Shaping::shipped().clone(),
            |settings| settings.delivery.shaping.clone(),
        )
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Queue) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ControlError> {
        self.reader.read(read).await
    }
}

impl Reader {
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Queue) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let permit = match tokio::time::timeout(PATIENCE, self.room.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(ControlError::Busy),
        };
        if self.queue.is_inline() {
            // Of a simulation: what comes first is told by its seed alone.
            return read(&self.queue).map_err(|error| ControlError::Store(error.to_string()));
        }
        let queue = self.queue.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(&queue)
        });
        match done.await {
            Ok(result) => result.map_err(|error| ControlError::Store(error.to_string())),
            Err(error) => Err(ControlError::Store(error.to_string())),
        }
    }
}

impl Control for QueueControl {
    async fn queues(&self, query: QueuesQuery) -> Result<QueueList, ControlError> {
        let now = self.clock.now();
        let selector = operate::queue_selector(&Selector {
            tenant: query.tenant.clone(),
            stream: query.stream.clone(),
            domain: query.domain.clone(),
            ..Selector::default()
        })?;
        let (mut list, firsts) = self
            .read(move |queue| queues(queue, &query, &selector, now))
            .await?;
        self.explain_all(&mut list.queues, firsts).await;
        let shaping = self.shaping();
        for hold in list.queues.iter_mut().filter_map(|queue| queue.hold.as_mut()) {
            classes::hold(hold, &shaping);
        }
        Ok(list)
    }

    async fn limits(&self) -> Result<LimitList, ControlError> {
        let settings = self.settings.as_ref().map(|settings| settings());
        let (ledger, now) = (self.doors.ledger().clone(), self.clock.now());
        self.read(move |queue| {
            let delivery = settings.as_ref().map(|settings| &settings.delivery);
            limits::list(&ledger, queue, delivery, now)
        })
        .await
    }

    async fn holds(&self) -> Result<HoldList, ControlError> {
        let now = self.clock.now();
        self.read(move |queue| {
            let mut holds = queue.holds(MAX_HOLDS_READ)?;
            let unread = holds.len() == MAX_HOLDS_READ;
            // One whose time is over stands until it is known whether its destination works.
            holds.retain(|(_, record)| record.until > now);
            let more = unread || holds.len() > MAX_HOLDS;
            holds.truncate(MAX_HOLDS);
            let holds = holds
                .into_iter()
                .map(|(scope, record)| hold(&scope, record))
                .collect();
            Ok(HoldList { holds, more })
        })
        .await
        .map(|mut list| {
            let shaping = self.shaping();
            list.holds
                .iter_mut()
                .for_each(|hold| classes::hold(hold, &shaping));
            list
        })
    }

    async fn queue(&self, id: u64) -> Result<Option<QueueSummary>, ControlError> {
        let now = self.clock.now();
        let read = self.read(move |queue| {
            let id = QueueId(id);
            let Some(record) = queue.info(id)? else {
                return Ok(None);
            };
            let suspensions = queue.suspensions(MAX_SUSPENSIONS)?;
            summary(queue, id, &record, &suspensions, now).map(Some)
        });
        let Some((mut summary, first)) = read.await? else {
            return Ok(None);
        };
        self.explain_all(std::slice::from_mut(&mut summary), vec![first])
            .await;
        if let (Some(first), None) = (first, &summary.waits) {
            // It is not in memory. Who asks wakes it.
            summary.waits = self.why(first).await;
        }
        if let Some(hold) = &mut summary.hold {
            classes::hold(hold, &self.shaping());
        }
        Ok(Some(summary))
    }

    async fn messages(&self, query: MessagesQuery) -> Result<MessageList, ControlError> {
        let mut selector = Selector {
            tenant: query.tenant,
            stream: query.stream,
            domain: query.domain,
            queue: query.queue,
            sender: query.sender,
            recipient: query.recipient,
            tag: query.tag,
            older_than_seconds: query.older_than_seconds,
            ..Selector::default()
        };
        selector.all = selector == Selector::default();
        let target = operate::Target::new(&selector)?;
        let after = operate::cursor(query.after.as_deref())?;
        let limit = query.limit.unwrap_or(PAGE);
        let mut list = match target {
            operate::Target::Scan(..) => self.found(target, after, limit).await?,
            _ => {
                self.read(move |queue| operate::messages(queue, &target, after, limit))
                    .await?
            }
        };
        let shaping = self.shaping();
        for message in &mut list.messages {
            classes::recipients(&mut message.recipients, &shaping);
        }
        Ok(list)
    }

    async fn aside(&self, query: AsideQuery) -> Result<AsideList, ControlError> {
        let after = aside::cursor(query.after.as_deref())?;
        self.read(move |queue| aside::list(queue, &query, after)).await
    }

    async fn raw(&self, id: MessageId, by: Caller) -> Result<Option<Raw>, ControlError> {
        let Some(envelope) = self.read(move |queue| queue.envelope(id)).await? else {
            return Ok(None);
        };
        tracing::info!(%id, by = %by.0, "message read");
        let bytes = envelope.prefix.len() as u64 + envelope.body_bytes;
        let (sender, parts) = mpsc::channel(1);
        let reader = self.reader.clone();
        tokio::spawn(async move {
            let mut part = Ok(envelope.prefix);
            for (number, sum) in (0..).zip(envelope.chunks) {
                let failed = part.is_err();
                // Whoever no longer listens, or takes too long, is left.
                let sent = tokio::time::timeout(RAW_PATIENCE, sender.send(part)).await;
                if failed || !matches!(sent, Ok(Ok(()))) {
                    return;
                }
                part = reader.read(move |queue| queue.body_chunk(id, number, sum)).await;
            }
            let _ = tokio::time::timeout(RAW_PATIENCE, sender.send(part)).await;
        });
        Ok(Some(Raw { bytes, parts }))
    }

    async fn suspensions(&self) -> Result<SuspensionList, ControlError> {
        self.list_suspensions().await
    }

    async fn suspend(&self, suspend: Suspend, by: Caller) -> Result<Suspension, ControlError> {
        self.set_suspension(suspend, by).await
    }

    async fn resume(&self, resume: Resume, by: Caller) -> Result<(), ControlError> {
        self.end_suspension(resume, by).await
    }

    async fn adjustments(&self, query: AdjustmentsQuery) -> Result<AdjustmentList, ControlError> {
        self.list_adjustments(query).await
    }

    async fn adjust(&self, set: SetAdjustment, by: Caller) -> Result<Adjustment, ControlError> {
        self.set_adjustment(set, by).await
    }

    async fn end_adjustment(&self, end: EndAdjustment, by: Caller) -> Result<Ended, ControlError> {
        self.end_adjustments(end, by).await
    }

    async fn retry(&self, retry: Retry, by: Caller) -> Result<Progress, ControlError> {
        self.retry_now(retry, by).await
    }

    async fn delete(&self, delete: Delete, by: Caller) -> Result<Deletion, ControlError> {
        self.delete_some(delete, by).await
    }

    async fn message(&self, id: MessageId) -> Result<Option<MessageView>, ControlError> {
        let read = self.read(move |queue| {
            let set_aside = queue.set_aside_of(id)?;
            let message = match queue.message(id) {
                // The journal tells of it, and that it is set aside.
                Err(ReadError::Damaged { .. }) if !set_aside.is_empty() => None,
                message => message?,
            };
            let history = match queue.history(id) {
                Ok(history) => history,
                // What is in the queue is known without the journal.
                Err(error) if message.is_some() => {
                    tracing::warn!(%error, %id, "the journal did not read");
                    Vec::new()
                }
                Err(error) => return Err(error),
            };
            let units = message.iter().flat_map(|message| &message.units);
            let waiting = units.filter(|unit| unit.aside.is_none());
            let units: Vec<_> = waiting.map(|unit| unit.key).collect();
            Ok(view(id, message, &history, &set_aside).zip(Some(units)))
        });
        let Some((mut view, units)) = read.await? else {
            return Ok(None);
        };
        self.explain(&mut view.recipients, units).await;
        let shaping = self.shaping();
        classes::recipients(&mut view.recipients, &shaping);
        classes::events(&mut view.events, &shaping);
        Ok(Some(view))
    }
}

/// A page of queues, and the first unit of each.
fn queues(
    queue: &Queue,
    query: &QueuesQuery,
    selector: &queue::Selector,
    now: Timestamp,
) -> Result<(QueueList, Vec<Option<UnitKey>>), ReadError> {
    let suspensions = queue.suspensions(MAX_SUSPENSIONS)?;
    let limit = query.limit.unwrap_or(PAGE);
    let (mut list, mut firsts) = (QueueList::default(), Vec::new());
    let mut after = query.after.map(QueueId);
    let mut looked = 0;
    loop {
        let page = queue.queues_of(selector, after, MAX_PAGE)?;
        looked += page.looked;
        for (id, record) in page.queues {
            if list.queues.len() == limit {
                list.next = after.map(|id| id.0);
                return Ok((list, firsts));
            }
            after = Some(id);
            if record.count > 0 || query.empty {
                let (summary, first) = summary(queue, id, &record, &suspensions, now)?;
                list.queues.push(summary);
                firsts.push(first);
            }
        }
        let Some(next) = page.next else {
            return Ok((list, firsts));
        };
        after = Some(next);
        if looked >= LOOKED_AT {
            list.next = Some(next.0);
            return Ok((list, firsts));
        }
    }
}

/// A queue, and its first unit.
fn summary(
    queue: &Queue,
    id: QueueId,
    record: &QueueRecord,
    suspensions: &[SuspensionRecord],
    now: Timestamp,
) -> Result<(QueueSummary, Option<UnitKey>), ReadError> {
    let suspension = suspension(suspensions, id, &record.name, now);
    let (first, _) = queue.due(id, FIRST, 1)?;
    let first = first.first().copied();
    let scope = HoldScope::Domain(record.name.domain.clone());
    let summary = QueueSummary {
        id: id.0,
        tenant: record.name.tenant.to_string(),
        stream: record.name.stream.to_string(),
        route_group: record.name.route_group.0,
        domain: record.name.domain.to_string(),
        messages: record.count,
        bytes: record.bytes,
        set_aside: record.aside,
        oldest: first.map(|unit| Time(unit.id.created())),
        next_due: first.map(|unit| Time(unit.due)),
        wake: record.wake.and_then(parked::time).map(Time),
        hold: queue
            .held(&scope)?
            .filter(|record| record.until > now)
            .map(|record| hold(&scope, record)),
        suspension: suspension.cloned().map(suspend::suspension),
        waits: None,
    };
    Ok((summary, first))
}

fn hold(scope: &HoldScope, record: HoldRecord) -> Hold {
    let (scope, name) = match scope {
        HoldScope::Domain(domain) => ("domain", domain.to_string()),
        HoldScope::Lane(lane) => ("lane", lane.clone()),
    };
    Hold {
        scope: scope.to_owned(),
        name,
        since: Time(record.since),
        until: Time(record.until),
        failures: record.failures,
        cause: record.cause,
        class: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use admin_api::adjust::Scope;
    use admin_api::{RecipientState, RecipientView};
    use bytes::Bytes;
    use mail_core::{BodyType, DsnOptions, Mailbox, Recipient, ReversePath};
    use queue::store::MemoryStore;
    use queue::{
        Accepted, Again, End, Fate, Hop, NewMessage, NewUnit, Origin, RouteGroup, Settle, StillOpen,
    };

    use super::*;
    use crate::delivery::exchange;

    pub(crate) const START: Timestamp = Timestamp(1_700_000_000_000);

    /// Two recipients at each of the domains.
    pub(crate) async fn accept(queue: &Queue, number: u8, domains: &[&str]) -> Accepted {
        let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
        accept_body(queue, MessageId::new(START, &[number; 10]), domains, body).await
    }

    /// The same where they are more than 256.
    pub(crate) async fn accept_one(queue: &Queue, number: u64, domains: &[&str]) -> Accepted {
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
        accept_body(queue, MessageId::new(START, &random), domains, body).await
    }

    /// The same to one domain by a way of its own.
    pub(crate) async fn accept_routed(
        queue: &Queue,
        number: u8,
        group: RouteGroup,
        domain: &str,
    ) -> Accepted {
        let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
        let mut message = message(MessageId::new(START, &[number; 10]), &[domain], body);
        for unit in &mut message.units {
            unit.route_group = group;
        }
        queue.accept(Arc::new(message)).await.unwrap()
    }

    /// One that its client has held.
    pub(crate) async fn accept_held(queue: &Queue, number: u8, domain: &str, until: Timestamp) -> Accepted {
        let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
        let mut message = message(MessageId::new(START, &[number; 10]), &[domain], body);
        message.expires_at = until + Duration::from_secs(3_600);
        message.units[0].due = until;
        queue.accept(Arc::new(message)).await.unwrap()
    }

    /// One that lasts.
    pub(crate) async fn accept_until(
        queue: &Queue,
        number: u64,
        domain: &str,
        expires_at: Timestamp,
    ) -> Accepted {
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
        let mut message = message(MessageId::new(START, &random), &[domain], body);
        message.expires_at = expires_at;
        queue.accept(Arc::new(message)).await.unwrap()
    }

    async fn accept_body(queue: &Queue, id: MessageId, domains: &[&str], body: Bytes) -> Accepted {
        queue.accept(Arc::new(message(id, domains, body))).await.unwrap()
    }

    pub(crate) fn message(id: MessageId, domains: &[&str], body: Bytes) -> NewMessage {
        NewMessage {
            id,
            received_at: START,
            expires_at: START + Duration::from_secs(3_600),
            tenant: "acme".into(),
            stream: "transactional".into(),
            reverse_path: ReversePath::Mailbox("from@acme.test".parse().unwrap()),
            body_type: BodyType::SevenBit,
            smtputf8: false,
            dsn: DsnOptions::default(),
            transfer: Default::default(),
            tag: None,
            metadata: Vec::new(),
            prefix: Bytes::new(),
            body,
            rest: None,
            origin: Origin::default(),
            cause: None,
            units: domains
                .iter()
                .map(|domain| NewUnit {
                    route_group: RouteGroup(0),
                    domain: domain.parse().unwrap(),
                    due: START,
                    recipients: ["one", "two"]
                        .map(|local| Recipient::new(format!("{local}@{domain}").parse().unwrap()))
                        .into(),
                })
                .collect(),
        }
    }

    /// Ours stands at 2023, and whoever asks has another one.
    #[tokio::test]
    async fn what_an_operator_sets_for_a_while_ends_by_the_relays_own_clock() {
        let (_, control) = control();
        let suspend = |until, for_seconds| Suspend {
            selector: Selector {
                all: true,
                ..Selector::default()
            },
            until,
            for_seconds,
            reason: "a test".into(),
        };
        let adjust = |until, for_seconds| SetAdjustment {
            scope: Scope {
                site: Some("mx.a.test".into()),
                ..Scope::default()
            },
            suspend: true,
            until,
            for_seconds,
            reason: "a test".into(),
            ..SetAdjustment::default()
        };
        let by = || Caller("uid 7".into());
        let two_hours = Duration::from_secs(7_200);
        let moment = Some(Time(START + two_hours));
        for (until, for_seconds) in [(None, Some(7_200)), (moment, None), (None, None)] {
            let set = control.suspend(suspend(until, for_seconds), by()).await.unwrap();
            let adjusted = control.adjust(adjust(until, for_seconds), by()).await.unwrap();
            for (since, end) in [(set.since, set.until), (adjusted.since, adjusted.until)] {
                let expected = for_seconds.map(|_| Time(since.0 + two_hours)).or(until);
                assert_eq!(end, expected);
                assert!((START..START + two_hours).contains(&since.0), "{since}");
            }
        }
        for (until, for_seconds, part) in [
            (moment, Some(7_200), "not both"),
            (None, Some(0), "for_seconds is 1 to 315360000"),
            (None, Some(315_360_001), "for_seconds is 1 to 315360000"),
            (None, Some(u64::MAX), "for_seconds is 1 to 315360000"),
            (Some(Time(START)), None, "past"),
        ] {
            let set = control
                .suspend(suspend(until, for_seconds), by())
                .await
                .map(|_| ());
            let adjusted = control.adjust(adjust(until, for_seconds), by()).await.map(|_| ());
            for done in [set, adjusted] {
                let Err(ControlError::Wrong(text)) = done else {
                    panic!("{until:?}, {for_seconds:?}: {done:?}");
                };
                assert!(text.contains(part), "{text}");
            }
        }
    }

    /// RFC 4865: until when is told, as long as it is.
    #[tokio::test]
    async fn a_message_tells_until_when_it_is_held() {
        let (queue, control) = control();
        let until = START + Duration::from_secs(4 * 86_400);
        let held = accept_held(&queue, 1, "held.test", until).await;
        let view = control.message(held.id).await.unwrap().unwrap();
        assert_eq!(view.held_until, Some(Time(until)));
        assert_eq!(view.recipients[0].next_due, Some(Time(until)));
        queue.retry(held.units[0], START, "uid 0").await.unwrap();
        let view = control.message(held.id).await.unwrap().unwrap();
        assert_eq!(
            (view.held_until, view.recipients[0].next_due),
            (None, Some(Time(START)))
        );
        let plain = accept(&queue, 2, &["a.test"]).await;
        let view = control.message(plain.id).await.unwrap().unwrap();
        assert_eq!(view.held_until, None);
    }

    pub(crate) fn control() -> (Queue, QueueControl) {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let (doors, _) = exchange::open(1);
        let clock = Clock::anchored(START);
        (queue.clone(), QueueControl::new(queue, doors, clock))
    }

    #[tokio::test]
    async fn a_message_is_read_part_by_part() {
        let (queue, control) = control();
        let octets: Vec<u8> = (0..1_500_000_u32).map(|at| (at % 251) as u8).collect();
        let large = accept_body(
            &queue,
            MessageId::new(START, &[1; 10]),
            &["a.test"],
            octets.clone().into(),
        )
        .await;
        let me = || Caller("uid 7".into());
        let mut raw = control.raw(large.id, me()).await.unwrap().unwrap();
        assert_eq!(raw.bytes, 1_500_000);
        let mut read = Vec::new();
        while let Some(part) = raw.parts.recv().await {
            let part = part.unwrap();
            assert!(part.len() < 1_100_000, "{}", part.len());
            read.extend_from_slice(&part);
        }
        assert!(read == octets);
        let absent = control.raw(MessageId::new(START, &[2; 10]), me()).await.unwrap();
        assert!(absent.is_none());
    }

    #[tokio::test]
    async fn pages_of_queues_cover_all_once() {
        let (queue, control) = control();
        for (number, domain) in ["a.test", "b.test", "c.test", "d.test", "e.test"]
            .iter()
            .enumerate()
        {
            accept(&queue, u8::try_from(number).unwrap(), &[domain]).await;
        }
        let record = HoldRecord {
            since: START,
            until: START + Duration::from_secs(60),
            failures: 1,
            cause: "SERVFAIL".into(),
        };
        // One that is over holds nothing.
        let over = HoldRecord {
            until: START,
            ..record.clone()
        };
        queue.hold(HoldScope::Domain("b.test".parse().unwrap()), over);
        queue.hold(HoldScope::Domain("c.test".parse().unwrap()), record);
        let mut seen = Vec::new();
        let of_one = QueuesQuery {
            domain: Some("c.test".into()),
            ..QueuesQuery::default()
        };
        let only = control.queues(of_one).await.unwrap().queues;
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].domain, "c.test");
        let wrong = QueuesQuery {
            domain: Some("not a domain".into()),
            ..QueuesQuery::default()
        };
        let told = control.queues(wrong).await.unwrap_err().to_string();
        assert!(told.starts_with("\"not a domain\" is no domain: "), "{told}");
        let mut query = QueuesQuery {
            limit: Some(2),
            ..QueuesQuery::default()
        };
        loop {
            let list = control.queues(query.clone()).await.unwrap();
            assert!(list.queues.len() <= 2);
            seen.extend(list.queues);
            match list.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let domains: Vec<_> = seen.iter().map(|queue| queue.domain.as_str()).collect();
        assert_eq!(domains, ["a.test", "b.test", "c.test", "d.test", "e.test"]);
        assert_eq!(seen[0].messages, 1);
        assert_eq!(seen[0].oldest, Some(Time(START)));
        let held: Vec<_> = seen.iter().map(|queue| queue.hold.is_some()).collect();
        assert_eq!(held, [false, false, true, false, false]);
        let holds = control.holds().await.unwrap();
        let names: Vec<_> = holds.holds.iter().map(|hold| hold.name.as_str()).collect();
        assert_eq!((names, holds.more), (vec!["c.test"], false));
    }

    /// A message may have 100,000 recipients.
    #[tokio::test]
    async fn a_page_of_messages_ends_where_it_names_many_recipients() {
        let (queue, control) = control();
        for number in 0..10 {
            accept(&queue, number, &["a.test", "b.test"]).await;
        }
        let mut query = MessagesQuery::default();
        let mut seen = Vec::new();
        loop {
            let page = control.messages(query.clone()).await.unwrap();
            let named: usize = page.messages.iter().map(|message| message.recipients.len()).sum();
            assert!(named <= 6, "two of each: {named}");
            seen.extend(
                page.messages
                    .into_iter()
                    .map(|message| (message.id, message.domain)),
            );
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 20, "each once");
    }

    #[tokio::test]
    async fn a_message_is_shown_from_its_first_moment_past_its_end() {
        let (queue, control) = control();
        let accepted = accept(&queue, 1, &["a.test"]).await;
        let id = accepted.id;
        let states = |view: &MessageView| {
            let of_one = |view: &RecipientView| (view.state, view.attempts, view.last_reply.clone());
            view.recipients.iter().map(of_one).collect::<Vec<_>>()
        };
        let view = control.message(id).await.unwrap().unwrap();
        assert!(view.queued && view.sender.as_deref() == Some("from@acme.test"));
        assert_eq!(states(&view), vec![(RecipientState::Queued, 0, None); 2]);
        assert_eq!(view.recipients[0].next_due, Some(Time(START)));

        // One is delivered, the other put off, then bounced.
        let who = |local: &str| format!("{local}@a.test").parse::<Mailbox>().unwrap();
        let end = |local, fate, reply: &str| End {
            mailbox: who(local),
            fate,
            reply: reply.into(),
        };
        let due = START + Duration::from_secs(300);
        let hop = Hop {
            host: "mx.a.test".into(),
            address: "192.0.2.1:25".into(),
            source: "out1".into(),
            ..Hop::default()
        };
        let settle = Settle {
            unit: accepted.units[0],
            at: START + Duration::from_secs(1),
            attempt: 1,
            hop: Some(hop),
            ends: vec![end("one", Fate::Delivered, "250 2.0.0 ok")],
            again: Some(Again {
                due,
                attempts: 1,
                in_doubt: 0,
                doubtful: false,
                open: vec![StillOpen {
                    recipient: 1,
                    mailbox: who("two"),
                    reply: "450 4.2.0 later".into(),
                }],
                others: Vec::new(),
                signature: None,
                delay_told: None,
            }),
            reports: Vec::new(),
        };
        let settled = queue.settle(settle.clone()).await.unwrap().await.unwrap();
        let view = control.message(id).await.unwrap().unwrap();
        assert_eq!(
            states(&view),
            [
                (RecipientState::Delivered, 1, Some("250 2.0.0 ok".into())),
                (RecipientState::Deferred, 1, Some("450 4.2.0 later".into()))
            ]
        );
        assert_eq!(
            view.recipients[0].host.as_deref(),
            Some("mx.a.test [192.0.2.1:25]")
        );
        let sources: Vec<_> = view.events.iter().map(|event| event.source.as_deref()).collect();
        assert_eq!(sources[0], None);
        assert!(
            sources[1..].iter().all(|source| *source == Some("out1")),
            "{sources:?}"
        );
        assert_eq!(
            (view.recipients[0].next_due, view.recipients[1].next_due),
            (None, Some(Time(due)))
        );

        let last = Settle {
            unit: settled.unit.unwrap(),
            attempt: 2,
            ends: vec![end("two", Fate::Bounced, "550 5.1.1 unknown")],
            again: None,
            ..settle
        };
        queue.settle(last).await.unwrap().await.unwrap();
        let view = control.message(id).await.unwrap().unwrap();
        assert!(!view.queued);
        assert_eq!(
            states(&view),
            [
                (RecipientState::Delivered, 1, Some("250 2.0.0 ok".into())),
                (RecipientState::Bounced, 2, Some("550 5.1.1 unknown".into()))
            ]
        );
        let kinds: Vec<_> = view.events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["accepted", "delivered", "deferred", "bounced"]);
        assert_eq!(view.tenant.as_deref(), Some("acme"));

        let nobody = MessageId::new(START, &[9; 10]);
        assert_eq!(control.message(nobody).await, Ok(None));
    }
}
