//! What operators have set to wait, and what they set going again.

use std::sync::Arc;

use admin_api::operate::{Resume, Selector, Suspend, Suspension, SuspensionList};
use admin_api::{Caller, ControlError, Time};
use mail_core::Timestamp;
use queue::{MAX_SUSPENSIONS, SuspensionRecord};

use super::operate::{QUEUES, Target, alone, end, reason, store};
use super::{QueueControl, Reader};
use crate::delivery::exchange::Doors;

impl QueueControl {
    pub(super) async fn suspensions_now(&self) -> Result<Vec<SuspensionRecord>, ControlError> {
        let now = self.clock.now();
        self.read(move |queue| {
            let mut all = queue.suspensions(MAX_SUSPENSIONS)?;
            all.retain(|record| record.until.is_none_or(|until| until > now));
            Ok(all)
        })
        .await
    }

    pub(super) async fn list_suspensions(&self) -> Result<SuspensionList, ControlError> {
        let all = self.suspensions_now().await?;
        Ok(SuspensionList {
            suspensions: all.into_iter().map(suspension).collect(),
        })
    }

    pub(super) async fn set_suspension(
        &self,
        suspend: Suspend,
        by: Caller,
    ) -> Result<Suspension, ControlError> {
        let selector = queues_alone(&suspend.selector, "suspended")?;
        let now = self.clock.now();
        let reason = reason(&suspend.reason)?;
        let until = end(suspend.until, suspend.for_seconds, now)?;
        let _one = alone(&self.suspending).await?;
        // Those whose time is over make room.
        let stored = self.read(|queue| queue.suspensions(MAX_SUSPENSIONS)).await?;
        for over in stored
            .iter()
            .filter(|record| record.until.is_some_and(|until| until <= now))
        {
            let resumed = self.queue.resume(over.selector.clone(), "its end", now).await;
            resumed.map_err(store)?;
        }
        let left = self.suspensions_now().await?;
        if left.len() >= MAX_SUSPENSIONS && !left.iter().any(|record| record.selector == selector) {
            let text = format!("there are {MAX_SUSPENSIONS} suspensions already");
            return Err(ControlError::Conflict(text));
        }
        let record = SuspensionRecord {
            selector,
            since: now,
            until,
            reason: reason.to_owned(),
            by: by.0.to_string(),
        };
        self.queue.suspend(record.clone()).await.map_err(store)?;
        self.tell_suspensions().await?;
        let until = record.until.map(|until| Time(until).to_string());
        tracing::warn!(selector = %record.selector, by = %by.0, reason, until, "suspended");
        Ok(suspension(record))
    }

    pub(super) async fn end_suspension(&self, resume: Resume, by: Caller) -> Result<(), ControlError> {
        let selector = queues_alone(&resume.selector, "resumed")?;
        let _one = alone(&self.suspending).await?;
        let known = self.suspensions_now().await?;
        if !known.iter().any(|record| record.selector == selector) {
            let text = format!("{selector} is not suspended; name it as it was suspended");
            return Err(ControlError::Absent(text));
        }
        let now = self.clock.now();
        self.queue
            .resume(selector.clone(), &by.0, now)
            .await
            .map_err(store)?;
        self.tell_suspensions().await?;
        tracing::info!(%selector, by = %by.0, "resumed");
        tokio::spawn(wake_all(self.reader.clone(), self.doors.clone(), selector, now));
        Ok(())
    }

    async fn tell_suspensions(&self) -> Result<(), ControlError> {
        let all = self.suspensions_now().await?;
        self.doors.suspensions(&all.into());
        Ok(())
    }
}

fn queues_alone(selector: &Selector, done: &str) -> Result<queue::Selector, ControlError> {
    match Target::new(selector)? {
        // `@` and a domain is no scan, but still tells of messages.
        Target::Queues(queues) if selector.recipient.is_none() => Ok(queues),
        Target::Queues(_) | Target::Scan(..) | Target::Message(_) | Target::SetAside(_) => {
            Err(ControlError::Wrong(format!("queues are {done}, not messages")))
        }
    }
}

/// Of suspensions that hold now, as operators see them.
pub(super) fn suspension(record: SuspensionRecord) -> Suspension {
    let selector = record.selector;
    Suspension {
        selector: Selector {
            all: selector == queue::Selector::default(),
            tenant: selector.tenant.map(|tenant| tenant.to_string()),
            stream: selector.stream.map(|stream| stream.to_string()),
            domain: selector.domain.map(|domain| domain.to_string()),
            queue: selector.queue.map(|queue| queue.0),
            ..Selector::default()
        },
        since: Time(record.since),
        until: record.until.map(Time),
        reason: record.reason,
        by: record.by,
    }
}

/// Wakes the queues that were suspended, page by page: the shards know of the last ones they came by alone. Those that a
/// failure leaves out wake by themselves, an hour after they were last looked at.
async fn wake_all(reader: Reader, doors: Doors, selector: queue::Selector, now: Timestamp) {
    let selector = Arc::new(selector);
    let mut after = None;
    loop {
        let of = selector.clone();
        let page = match reader
            .read(move |queue| queue.queues_of(&of, after, QUEUES))
            .await
        {
            Ok(page) => page,
            Err(error) => return tracing::warn!(%selector, %error, "not all resumed queues were woken"),
        };
        // One that is awake, or has nothing due yet, stays as it is.
        let sleeps = |wake: Option<Timestamp>| wake.is_some_and(|wake| wake > now);
        for (id, _) in page.queues.iter().filter(|(_, record)| sleeps(record.wake)) {
            if let Err(error) = reader.queue.wake(*id, now).await {
                return tracing::warn!(%selector, %error, "not all resumed queues were woken");
            }
            doors.wake(*id);
        }
        after = page.next;
        if after.is_none() {
            return;
        }
    }
}
