//! The relay as the admin API sees it: reads of the queue and its journal.

mod adjust;
mod aside;
mod classes;
mod limits;
pub mod manage;
mod operate;
mod queues;
pub(crate) mod scan;
mod suspend;
#[cfg(test)]
pub(crate) mod tests;
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
    Caller, Control, ControlError, HoldList, MessageView, QueueList, QueueSummary, QueuesQuery, Raw,
};
use mail_core::MessageId;
use queue::{MAX_SUSPENSIONS, Queue, QueueId, ReadError};
use tokio::sync::{Mutex, Semaphore, mpsc};

use crate::config::Settings;
use crate::delivery::exchange::Doors;
use crate::shaping::Shaping;
use crate::world::Clock;

use queues::{hold, queues, summary};
use view::view;

/// Reads at once; a message's history may look through many entries of the journal.
const READS: usize = 4;

/// How long a question waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

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
